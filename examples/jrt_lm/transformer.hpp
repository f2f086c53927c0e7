// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <jrt/distributed/context_layout.hpp>
#include <jrt/numeric.hpp>
#include <jrt/state.hpp>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "jrt_lm/activations.hpp"
#include "jrt_lm/decode_steps.hpp"
#include "jrt_lm/device_model.hpp"
#include "jrt_lm/draft.hpp"
#include "jrt_lm/language_model.hpp"
#include "jrt_lm/layers.hpp"
#include "jrt_lm/mixers.hpp"
#include "jrt_lm/pass.hpp"
#include "jrt_lm/prefill_plan.hpp"
#include "jrt_lm/short_prompts.hpp"
#include "jrt_lm/staged_steps.hpp"
#include "jrt_lm/whole_prompts.hpp"

namespace jrt_lm {

/// The model, for any device (device_model.hpp): prompts, steps and states of the sequences in its slots.
template <class Device, class Element>
class Transformer final : public LanguageModel {
 public:
  using Mixers = jrt_lm::Mixers<Device, Element>;

  Transformer(Mixers mixers, ModelConfig config, const WeightSource& source, const ModelOptions& options)
      : tokens_per_group_(options.tokens_per_group),
        separate_kernels_(options.separate_kernels),
        model_(std::move(mixers), std::move(config), source, options),
        layers_(model_),
        steps_(model_, layers_, options.separate_kernels),
        staged_steps_(model_, layers_, options.separate_kernels),
        whole_prompts_(model_),
        short_prompts_(model_, layers_),
        tokens_read_(static_cast<std::size_t>(options.slots)) {}

  [[nodiscard]] const ModelConfig& config() const override { return model_.config; }
  [[nodiscard]] std::int64_t slots() const override { return model_.states.slots(); }
  [[nodiscard]] std::int64_t state_bytes() const override { return model_.states.slot_bytes(); }
  [[nodiscard]] std::int64_t device_bytes() const override { return model_.device.allocated_bytes(); }
  [[nodiscard]] std::string device_name() const override { return model_.device.name(); }
  [[nodiscard]] bool stepped_in_one_kernel() const override { return stepped_in_one_kernel_; }
  [[nodiscard]] std::int64_t tokens_read(std::int32_t slot) const override { return tokens_read_.at(checked(slot)); }
  void synchronize() override { model_.device.synchronize(); }
  [[nodiscard]] double seconds_to_read_weights() override {
    if constexpr (requires { model_.device.seconds_to_read(std::int64_t{}); }) {
      return model_.device.seconds_to_read(model_.weights.step_bytes());
    }
    return 0;
  }

  void prefill(std::span<const Prompt> prompts, LogitsOf rows, const Progress& progress) override {
    check_prompts(model_.config, tokens_read_, prompts);
    staged_ = {};
    if (Logits* const logits = short_prompt(prompts, rows); logits != nullptr) {
      logits_ = logits;
      count(prompts);
      if (progress) {
        model_.device.synchronize();
        progress(1);
      }
      return;
    }
    std::int64_t all_rows = 0;
    std::int64_t all_tokens = 0;
    for (const Prompt& prompt : prompts) {
      all_rows += rows == LogitsOf::last_tokens ? 1 : std::ssize(prompt.tokens);
      all_tokens += std::ssize(prompt.tokens);
    }
    prefill_logits_.reserve(model_.device, all_rows, model_.config);
    logits_ = &prefill_logits_;
    std::int64_t tokens_done = 0;
    while (!prompts.empty()) {
      const PrefillPlan plan(prompts, rows, tokens_per_group_, tokens_read_);
      const auto group_progress = [&](std::int64_t layers_done) {
        if (progress) {
          model_.device.synchronize();
          const double part = static_cast<double>(layers_done) / static_cast<double>(model_.config.layers.size());
          progress((static_cast<double>(tokens_done) + part * static_cast<double>(plan.rows())) /
                   static_cast<double>(all_tokens));
        }
      };
      prefill_group(plan, group_progress);
      tokens_done += plan.rows();
      count(prompts.first(plan.prompts()));
      prompts = prompts.subspan(plan.prompts());
    }
  }

  void step(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots) override {
    Batch& batch = enqueue_step(tokens, of_slots, 1);
    model_.device.launch(batch.graph);
    count_steps(of_slots, 1);
  }

  std::vector<std::int32_t> greedy_steps(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots,
                                         std::int64_t steps) override {
    Batch& batch = enqueue_step(tokens, of_slots, steps);
    const std::int64_t rows = std::ssize(of_slots);
    Array<std::int32_t> history(model_.device, steps * rows);
    for (std::int64_t i = 0; i < steps; ++i) {
      model_.device.launch(batch.graph);
      model_.device.advance(batch.logits.likeliest.data(), batch.tokens.data(), batch.positions.data(),
                            history.data() + i * rows, rows);
    }
    count_steps(of_slots, steps);
    return history.download(steps * rows);
  }

  void staged_step(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots) override {
    check_staged_step(model_.config, tokens_read_, tokens, of_slots);
    staged_ = {};
    StagedBatch<Device, Element>& batch = staged_steps_.enqueue(tokens, of_slots, positions_of(of_slots));
    logits_ = &batch.logits;
    stepped_in_one_kernel_ = batch.whole.exists();
    staged_ = {&batch, {of_slots.begin(), of_slots.end()}};
  }

  void commit(std::span<const std::int32_t> accepted) override {
    const Staged staged = std::exchange(staged_, {});
    if (staged.batch == nullptr) {
      throw std::invalid_argument("there is nothing to commit: the last call was no staged step");
    }
    check_commit(accepted, staged.batch->sequences, staged.batch->tokens);
    staged_steps_.commit(*staged.batch, accepted);
    for (std::size_t i = 0; i < accepted.size(); ++i) {
      count_steps(std::span(staged.slots).subspan(i, 1), accepted[i]);
    }
  }

  std::vector<std::int32_t> speculative_step(std::span<const std::int32_t> tokens,
                                             std::span<const std::int32_t> of_slots) override {
    staged_step(tokens, of_slots);
    const Staged staged = std::exchange(staged_, {});
    std::vector<std::int32_t> likeliest = staged_steps_.commit_likeliest(*staged.batch);
    const auto count = static_cast<std::size_t>(staged.batch->tokens);
    for (std::size_t i = 0; i < of_slots.size(); ++i) {
      const auto accepted =
          accepted_tokens(tokens.subspan(i * count, count), std::span(likeliest).subspan(i * count, count));
      count_steps(of_slots.subspan(i, 1), accepted);
    }
    return likeliest;
  }

  [[nodiscard]] std::vector<double> logits() override {
    require_logits();
    const std::vector<Sum> values = logits_->values.download(logits_->rows * model_.config.vocabulary_rows);
    return {values.begin(), values.end()};
  }

  [[nodiscard]] std::vector<std::int32_t> likeliest() override {
    require_logits();
    return logits_->likeliest.download(logits_->rows);
  }

  [[nodiscard]] std::int64_t first_not_finite(std::int32_t token, std::int32_t slot) override {
    Batch& batch = enqueue_step(std::span(&token, 1), std::span(&slot, 1), 1);
    const Array<Sum>& residual = batch.activations.residual;
    std::int64_t first = -1;
    const auto look = [&](std::int64_t place) {
      const std::vector<Sum> row = residual.download(model_.config.width);
      if (first < 0 && !std::all_of(row.begin(), row.end(), [](Sum x) { return std::isfinite(x); })) {
        first = place;
      }
    };
    model_.device.embed(batch.tokens.data(), 1, model_.weights.embedding.weight.data(), model_.config.width,
                        batch.activations.residual.data());
    look(0);
    layers_.run(steps_.pass_of(batch, 1), batch.activations, look);
    return first;
  }

  void use_device() override { model_.device.use(); }
  [[nodiscard]] std::unique_ptr<RankGroup> make_group(int ranks) override { return model_.device.make_group(ranks); }

  void join(RankGroup& group, int rank) override {
    link_.reset();
    link_ = model_.device.link(group, rank);
    group_ = &group;
  }

  void prepare_piece(const RankedPrompt& prompt, int rank) override {
    rehearse(prompt, rank);
    piece_.emplace(plan_of_piece(prompt, rank, prompt.slot));
    upload(*piece_);
    prefill_logits_.reserve(model_.device, 1, model_.config);
    model_.device.synchronize();
  }

  void read_piece(const RankedPrompt& prompt, int /*rank*/, const std::function<void(std::int64_t)>& enqueued) override {
    const jrt::ContextLayout layout = prompt.layout();
    staged_ = {};
    prefill_logits_.rows = 0;
    logits_ = &prefill_logits_;
    layers_.read_pieces(&layout, link_.get());
    try {
      layers_.run_prompts(layers_.pass_of(*piece_, prefill_activations_), prefill_activations_, prefill_logits_, enqueued);
      model_.device.await(*link_);
    } catch (const std::exception& error) {
      layers_.read_pieces(nullptr, nullptr);
      const bool is_first = group_->abort();  // or the others would wait
      link_->abort();
      if (!is_first) {
        throw FollowedAnother(error.what());
      }
      throw;
    }
    layers_.read_pieces(nullptr, nullptr);
    tokens_read_[checked(prompt.slot)] = prompt.tokens_before + std::ssize(prompt.tokens);
  }

  void fork(std::int32_t from, std::int32_t to) override {
    tokens_read_[checked(to)] = tokens_read_[checked(from)];
    staged_ = {};
    model_.states.copy(model_.device, from, to);
  }

  [[nodiscard]] std::vector<std::byte> save(std::int32_t slot) override {
    return model_.states.save(model_.device, slot, tokens_read_[checked(slot)]);
  }

  void load(std::span<const std::byte> bytes, std::int32_t slot) override {
    static_cast<void>(checked(slot));
    staged_ = {};
    tokens_read_[checked(slot)] = model_.states.load(model_.device, bytes, slot);
  }

 private:
  using Sum = jrt::ComputeType<Element>;
  template <class T>
  using Array = typename Device::template Array<T>;
  using Logits = LogitRows<Device, Element>;
  using Batch = StepBatch<Device, Element>;
  /// The staged step that was the last call.
  struct Staged {
    StagedBatch<Device, Element>* batch = nullptr;  // null: the last call was another
    std::vector<std::int32_t> slots{};
  };

  [[nodiscard]] std::size_t checked(std::int32_t slot) const {
    check_slot(slots(), slot);
    return static_cast<std::size_t>(slot);
  }

  void require_logits() const {
    if (logits_ == nullptr) {
      throw std::invalid_argument("there are no logits before the first prefill or step");
    }
  }

  /// A prompt in one kernel, or in a graph; null: neither.
  Logits* short_prompt(std::span<const Prompt> prompts, LogitsOf rows) {
    if (separate_kernels_) {
      return nullptr;
    }
    Logits* const logits = whole_prompts_.read(prompts, rows, tokens_read_);
    if (logits != nullptr || !short_prompts_.takes(prompts, rows)) {
      return logits;
    }
    return &short_prompts_.read(prompts, tokens_read_);
  }

  void prefill_group(const PrefillPlan& plan, const std::function<void(std::int64_t)>& progress) {
    upload(plan);
    layers_.run_prompts(layers_.pass_of(plan, prefill_activations_), prefill_activations_, prefill_logits_, progress);
  }

  /// Makes room for the prompts of a plan, and puts its numbers where `pass_of` finds them.
  void upload(const PrefillPlan& plan) {
    prefill_activations_.reserve(model_.device, model_.config, plan.rows(), plan.encoder_rows());
    prefill_activations_.upload(model_.device, plan.data(), plan.continues());
  }

  /// A rank's piece as a prompt of its own, whose positions go on from the ranks before.
  [[nodiscard]] PrefillPlan plan_of_piece(const RankedPrompt& prompt, int rank, std::int64_t slot) const {
    const jrt::ContextLayout layout = prompt.layout();
    const std::int64_t first = layout.first_token(rank, 0);
    Prompt own{prompt.tokens.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(layout.piece(rank, 0)))};
    own.slot = static_cast<std::int32_t>(slot);
    own.prefix = layout.encoder_piece(rank, 0);
    own.continues = true;
    std::vector<std::int64_t> tokens_before_it(static_cast<std::size_t>(slots()) + 1);
    tokens_before_it[static_cast<std::size_t>(slot)] = prompt.tokens_before + first;
    return {std::span(&own, 1), LogitsOf::last_tokens, tokens_per_group_, tokens_before_it};
  }

  /// Every call of a piece but the exchanges, for one layer of each kind, on the spare slot: then all memory is there, and
  /// the kernels for products of this size are chosen and loaded. Once a rank waits for another on its GPU, none of that
  /// may happen: the driver may wait for all GPUs then, and the other rank's thread for the driver.
  void rehearse(const RankedPrompt& prompt, int rank) {
    const auto what = std::tuple(prompt.pieces, prompt.encoder_pieces, prompt.continues);
    if (std::find(rehearsed_.begin(), rehearsed_.end(), what) != rehearsed_.end()) {
      return;
    }
    const jrt::ContextLayout layout = prompt.layout();
    const PrefillPlan plan = plan_of_piece(prompt, rank, slots());
    RehearsalLink<typename Device::Execution> nobody(rank, layout.ranks);
    upload(plan);
    prefill_logits_.reserve(model_.device, 1, model_.config);
    Pass pass = layers_.pass_of(plan, prefill_activations_);
    pass.one_of_each = true;
    layers_.read_pieces(&layout, &nobody);
    try {
      layers_.run_prompts(pass, prefill_activations_, prefill_logits_, {});
      model_.device.synchronize();
    } catch (...) {
      layers_.read_pieces(nullptr, nullptr);
      throw;
    }
    layers_.read_pieces(nullptr, nullptr);
    rehearsed_.push_back(what);
  }

  /// Everything of a step but its start: tokens, slots and positions are where its graph finds them.
  Batch& enqueue_step(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots, std::int64_t steps) {
    check_step(model_.config, tokens_read_, tokens, of_slots, steps);
    staged_ = {};
    Batch& batch = steps_.batch_of(std::ssize(of_slots));
    batch.tokens.upload(tokens);
    batch.slots.upload(of_slots);
    batch.positions.upload(positions_of(of_slots));
    logits_ = &batch.logits;
    stepped_in_one_kernel_ = batch.whole.exists();
    return batch;
  }

  /// Of the next token in each slot.
  [[nodiscard]] std::vector<std::int32_t> positions_of(std::span<const std::int32_t> of_slots) const {
    std::vector<std::int32_t> positions;
    for (const std::int32_t slot : of_slots) {
      positions.push_back(slot == jrt::skip_slot ? 0 : static_cast<std::int32_t>(tokens_read_[checked(slot)]));
    }
    return positions;
  }

  void count(std::span<const Prompt> prompts) {
    for (const Prompt& prompt : prompts) {
      auto& read = tokens_read_[checked(prompt.slot)];
      read = (prompt.continues ? read : 0) + std::ssize(prompt.tokens);
    }
  }
  void count_steps(std::span<const std::int32_t> of_slots, std::int64_t steps) {
    for (const std::int32_t slot : of_slots) {
      if (slot != jrt::skip_slot) {
        tokens_read_[checked(slot)] += steps;
      }
    }
  }

  std::int64_t tokens_per_group_;
  bool separate_kernels_;
  DeviceModel<Device, Element> model_;
  Layers<Device, Element> layers_;
  DecodeSteps<Device, Element> steps_;
  StagedSteps<Device, Element> staged_steps_;
  WholePrompts<Device, Element> whole_prompts_;
  ShortPrompts<Device, Element> short_prompts_;
  std::vector<std::int64_t> tokens_read_;
  Activations<Device, Element> prefill_activations_;
  Logits prefill_logits_;
  Logits* logits_ = nullptr;  // of the last call
  Staged staged_{};
  std::unique_ptr<RankLink<typename Device::Execution>> link_;
  RankGroup* group_ = nullptr;        // of the link
  std::optional<PrefillPlan> piece_;  // prepared
  std::vector<std::tuple<std::vector<std::int64_t>, std::vector<std::int64_t>, bool>> rehearsed_;
  bool stepped_in_one_kernel_ = false;
};

}  // namespace jrt_lm
