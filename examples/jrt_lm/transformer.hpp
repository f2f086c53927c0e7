// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <jrt/numeric.hpp>
#include <jrt/state.hpp>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "jrt_lm/activations.hpp"
#include "jrt_lm/language_model.hpp"
#include "jrt_lm/layer_states.hpp"
#include "jrt_lm/mixers.hpp"
#include "jrt_lm/model_weights.hpp"
#include "jrt_lm/pass.hpp"
#include "jrt_lm/prefill_plan.hpp"
#include "jrt_lm/prompt_graphs.hpp"
#include "jrt_lm/step_kernel.hpp"
#include "jrt_lm/step_plan.hpp"

namespace jrt_lm {

/// The model, for any device. `Device` (cpu_device.hpp, cuda_device.cuh) has memory, matrix products and the small
/// functions between them; the mixers are the library's, on `device.execution()`, compiled elsewhere for their dimensions.
///
/// A token's way: its row of the embedding table becomes the residual stream x, in float (double for double); each layer
/// adds mixer(norm(x)) and mlp(norm(x)) to it; norm(x) times the embedding table is the logits.
template <class Device, class Element>
class Transformer final : public LanguageModel {
 public:
  using Mixers = jrt_lm::Mixers<Device, Element>;

  Transformer(Mixers mixers, ModelConfig config, const WeightSource& source, const ModelOptions& options)
      : config_(std::move(config)),
        tokens_per_group_(options.tokens_per_group),
        separate_kernels_(options.separate_kernels),
        device_(options),
        mixers_(std::move(mixers)),
        weights_(device_, config_, source),
        states_(device_, config_, mixers_, options.slots),
        tokens_read_(static_cast<std::size_t>(options.slots)) {}

  [[nodiscard]] const ModelConfig& config() const override { return config_; }
  [[nodiscard]] std::int64_t slots() const override { return states_.slots(); }
  [[nodiscard]] std::int64_t state_bytes() const override { return states_.slot_bytes(); }
  [[nodiscard]] std::int64_t device_bytes() const override { return device_.allocated_bytes(); }
  [[nodiscard]] std::string device_name() const override { return device_.name(); }
  [[nodiscard]] bool stepped_in_one_kernel() const override { return stepped_in_one_kernel_; }
  [[nodiscard]] std::int64_t tokens_read(std::int32_t slot) const override { return tokens_read_.at(checked(slot)); }
  void synchronize() override { device_.synchronize(); }

  void prefill(std::span<const Prompt> prompts, LogitsOf rows, const Progress& progress) override {
    check_prompts(config_, tokens_read_, prompts);
    if (read_short_prompt(prompts, rows)) {
      return;
    }
    std::int64_t all_rows = 0;
    std::int64_t all_tokens = 0;
    for (const Prompt& prompt : prompts) {
      all_rows += rows == LogitsOf::last_tokens ? 1 : std::ssize(prompt.tokens);
      all_tokens += std::ssize(prompt.tokens);
    }
    prefill_logits_.reserve(device_, all_rows, config_);
    logits_ = &prefill_logits_;
    std::int64_t tokens_done = 0;
    while (!prompts.empty()) {
      const PrefillPlan plan(prompts, rows, tokens_per_group_, tokens_read_);
      const auto group_progress = [&](std::int64_t layers_done) {
        if (progress) {
          device_.synchronize();
          const double part = static_cast<double>(layers_done) / static_cast<double>(config_.layers.size());
          progress((static_cast<double>(tokens_done) + part * static_cast<double>(plan.rows())) /
                   static_cast<double>(all_tokens));
        }
      };
      prefill_group(plan, group_progress);
      tokens_done += plan.rows();
      for (const Prompt& prompt : prompts.first(plan.prompts())) {
        auto& read = tokens_read_[static_cast<std::size_t>(prompt.slot)];
        read = (prompt.continues ? read : 0) + std::ssize(prompt.tokens);
      }
      prompts = prompts.subspan(plan.prompts());
    }
  }

  void step(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots) override {
    StepBatch& batch = enqueue_step(tokens, of_slots, 1);
    device_.launch(batch.graph);
    count_steps(of_slots, 1);
  }

  std::vector<std::int32_t> greedy_steps(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots,
                                         std::int64_t steps) override {
    StepBatch& batch = enqueue_step(tokens, of_slots, steps);
    const std::int64_t rows = std::ssize(of_slots);
    Array<std::int32_t> history(device_, steps * rows);
    for (std::int64_t i = 0; i < steps; ++i) {
      device_.launch(batch.graph);
      device_.advance(batch.logits.likeliest.data(), batch.tokens.data(), batch.positions.data(), history.data() + i * rows,
                      rows);
    }
    count_steps(of_slots, steps);
    return history.download(steps * rows);
  }

  [[nodiscard]] std::vector<double> logits() override {
    require_logits();
    const std::vector<Sum> values = logits_->values.download(logits_->rows * config_.vocabulary_rows);
    return {values.begin(), values.end()};
  }

  [[nodiscard]] std::vector<std::int32_t> likeliest() override {
    require_logits();
    return logits_->likeliest.download(logits_->rows);
  }

  [[nodiscard]] std::int64_t first_not_finite(std::int32_t token, std::int32_t slot) override {
    StepBatch& batch = enqueue_step(std::span(&token, 1), std::span(&slot, 1), 1);
    const Array<Sum>& residual = batch.activations.residual;
    std::int64_t first = -1;
    const auto look = [&](std::int64_t place) {
      const std::vector<Sum> row = residual.download(config_.width);
      if (first < 0 && !std::all_of(row.begin(), row.end(), [](Sum x) { return std::isfinite(x); })) {
        first = place;
      }
    };
    device_.embed(batch.tokens.data(), 1, weights_.embedding.weight.data(), config_.width,
                  batch.activations.residual.data());
    look(0);
    run_layers(pass_of(batch, 1), batch.activations, look);
    return first;
  }

  void use_device() override { device_.use(); }
  [[nodiscard]] std::unique_ptr<RankGroup> make_group(int ranks) override { return device_.make_group(ranks); }

  void join(RankGroup& group, int rank) override {
    link_.reset();
    link_ = device_.link(group, rank);
  }

  void prepare_piece(const RankedPrompt& prompt, int rank) override {
    rehearse(prompt, rank);
    piece_.emplace(plan_of_piece(prompt, rank, prompt.slot));
    upload(*piece_);
    prefill_logits_.reserve(device_, 1, config_);
    device_.synchronize();
  }

  void read_piece(const RankedPrompt& prompt, int /*rank*/, const std::function<void(std::int64_t)>& enqueued) override {
    const jrt::ContextLayout layout = prompt.layout();
    prefill_logits_.rows = 0;
    logits_ = &prefill_logits_;
    ranked_ = {&layout, link_.get()};
    try {
      run_prompts(pass_of(*piece_, prefill_activations_), prefill_activations_, prefill_logits_, enqueued);
      device_.await(*link_);
    } catch (...) {
      link_->abort();  // or the others would wait
      ranked_ = {};
      throw;
    }
    ranked_ = {};
    tokens_read_[checked(prompt.slot)] = prompt.tokens_before + std::ssize(prompt.tokens);
  }

  void fork(std::int32_t from, std::int32_t to) override {
    tokens_read_[checked(to)] = tokens_read_[checked(from)];
    states_.copy(device_, from, to);
  }

  [[nodiscard]] std::vector<std::byte> save(std::int32_t slot) override {
    return states_.save(device_, slot, tokens_read_[checked(slot)]);
  }

  void load(std::span<const std::byte> bytes, std::int32_t slot) override {
    static_cast<void>(checked(slot));
    tokens_read_[checked(slot)] = states_.load(device_, bytes, slot);
  }

 private:
  using Sum = jrt::ComputeType<Element>;
  template <class T>
  using Array = typename Device::template Array<T>;
  using Layer = typename ModelWeights<Device, Element>::Layer;
  using Logits = LogitRows<Device, Element>;

  /// Steps of a number of sequences: their tokens, and the whole step in a form that the device can repeat.
  struct StepBatch {
    Array<std::int32_t> tokens{};
    Array<std::int32_t> positions{};
    Array<std::int32_t> slots{};
    Activations<Device, Element> activations{};
    Logits logits{};
    Array<std::byte> stages{};  ///< of one kernel for the whole step; empty: there are separate ones
    Array<std::byte> candidates{};
    Array<std::uint32_t> arrivals{};
    typename Device::Graph graph{};
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

  /// One short prompt, from a graph: false if it is not such a prompt. All memory of it is the graphs' own, as large as
  /// the largest needs, but for the mixers' workspace, whose growth shows.
  bool read_short_prompt([[maybe_unused]] std::span<const Prompt> prompts, [[maybe_unused]] LogitsOf rows) {
    if constexpr (!Device::replays_prompts) {
      return false;
    } else {
      if (separate_kernels_ || prompts.size() != 1 || rows != LogitsOf::last_tokens || prompts[0].zero_keys != 0 ||
          std::ssize(prompts[0].tokens) > short_prompt_tokens) {
        return false;
      }
      const Prompt& prompt = prompts[0];
      const PromptShape shape = short_prompt_shape(std::ssize(prompt.tokens), prompt.prefix);
      const PrefillPlan plan(prompts, shape, tokens_read_);
      Activations<Device, Element>& a = prompt_activations_;
      a.reserve(device_, config_, short_prompt_tokens, config_.has_encoder ? short_prompt_tokens : 0);
      constexpr std::size_t numbers_of_call = 8;
      a.upload(device_, plan.data(), plan.continues(), 2 * short_prompt_tokens + numbers_of_call);
      prompt_logits_.reserve(device_, 1, config_);
      logits_ = &prompt_logits_;
      const auto run = [&] {
        prompt_logits_.rows = 0;
        run_prompts(pass_of(plan, a), a, prompt_logits_, {});
      };
      const auto eager = [&] {
        const std::byte* const scratch = a.scratch.data();
        run();
        if (a.scratch.data() != scratch) {
          prompt_graphs_.clear();
        }
      };
      prompt_graphs_.read(
          shape, eager, [&] { return device_.capture(run); }, [&](const auto& graph) { device_.launch(graph); });
      prompt_logits_.rows = 1;
      auto& read = tokens_read_[static_cast<std::size_t>(prompt.slot)];
      read = (prompt.continues ? read : 0) + std::ssize(prompt.tokens);
      return true;
    }
  }

  void prefill_group(const PrefillPlan& plan, const std::function<void(std::int64_t)>& progress) {
    upload(plan);
    run_prompts(pass_of(plan, prefill_activations_), prefill_activations_, prefill_logits_, progress);
  }

  /// Makes room for the prompts of a plan, and puts its numbers where `pass_of` finds them.
  void upload(const PrefillPlan& plan) {
    prefill_activations_.reserve(device_, config_, plan.rows(), plan.encoder_rows());
    prefill_activations_.upload(device_, plan.data(), plan.continues());
  }
  [[nodiscard]] static Pass pass_of(const PrefillPlan& plan, const Activations<Device, Element>& a) {
    const Array<std::int32_t>& numbers = a.numbers;
    Pass pass;
    pass.rows = plan.rows();
    pass.tokens = numbers.data() + plan.tokens_at();
    pass.positions = numbers.data() + plan.positions_at();
    pass.slots = numbers.data() + plan.slots_at();
    pass.continues = a.continues.data();
    pass.sequences.count = plan.prompts();
    pass.sequences.cu_seqlens = numbers.data() + plan.offsets_at();
    pass.sequences.cu_encoder_seqlens = numbers.data() + plan.encoder_offsets_at();
    pass.sequences.max_tokens = plan.longest();
    pass.plan = &plan;
    return pass;
  }
  void run_prompts(const Pass& pass, Activations<Device, Element>& a, Logits& logits,
                   const std::function<void(std::int64_t)>& after_layer) {
    run_layers(pass, a, after_layer);
    finish(a, a.numbers.data() + pass.plan->logit_rows_at(), pass.plan->logit_rows(), logits);
  }

  /// A rank's piece as a prompt of its own, whose positions go on from the ranks before.
  PrefillPlan plan_of_piece(const RankedPrompt& prompt, int rank, std::int64_t slot) const {
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
    prefill_logits_.reserve(device_, 1, config_);
    Pass pass = pass_of(plan, prefill_activations_);
    pass.one_of_each = true;
    ranked_ = {&layout, &nobody};
    try {
      run_prompts(pass, prefill_activations_, prefill_logits_, {});
      device_.synchronize();
    } catch (...) {
      ranked_ = {};
      throw;
    }
    ranked_ = {};
    rehearsed_.push_back(what);
  }

  /// Everything of a step but its start: tokens, slots and positions are where its graph finds them.
  StepBatch& enqueue_step(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots,
                          std::int64_t steps) {
    check_step(config_, tokens_read_, tokens, of_slots, steps);
    const std::int64_t rows = std::ssize(of_slots);
    auto& batch = steps_[rows];
    if (batch == nullptr) {
      auto prepared = std::make_unique<StepBatch>();
      prepare(*prepared, rows);
      batch = std::move(prepared);
    }
    std::vector<std::int32_t> positions;
    for (const std::int32_t slot : of_slots) {
      positions.push_back(slot == jrt::skip_slot ? 0 : static_cast<std::int32_t>(tokens_read_[checked(slot)]));
    }
    batch->tokens.upload(tokens);
    batch->slots.upload(of_slots);
    batch->positions.upload(positions);
    logits_ = &batch->logits;
    stepped_in_one_kernel_ = batch->stages.size() > 0;
    return *batch;
  }

  void prepare(StepBatch& batch, std::int64_t rows) {
    batch.tokens = Array<std::int32_t>(device_, rows);
    batch.positions = Array<std::int32_t>(device_, rows);
    batch.slots = Array<std::int32_t>(device_, rows);
    batch.activations.reserve(device_, config_, rows, 0);
    batch.logits.reserve(device_, rows, config_);
    batch.tokens.upload(std::vector<std::int32_t>(static_cast<std::size_t>(rows)));
    batch.positions.upload(std::vector<std::int32_t>(static_cast<std::size_t>(rows)));
    batch.slots.upload(std::vector<std::int32_t>(static_cast<std::size_t>(rows), jrt::skip_slot));
    if (prepare_whole_step(batch, rows)) {
      return;
    }
    const auto run = [this, &batch, rows] {
      run_layers(pass_of(batch, rows), batch.activations, {});
      batch.logits.rows = 0;
      finish(batch.activations, nullptr, rows, batch.logits);
    };
    run();  // rows of padding: it changes no state, but all memory is there afterwards, and all kernels are loaded
    batch.graph = device_.capture(run);
  }

  /// The step as one kernel, if there is one that can run here: false otherwise.
  bool prepare_whole_step([[maybe_unused]] StepBatch& batch, [[maybe_unused]] std::int64_t rows) {
    if constexpr (requires { &Device::launch_step; } && std::is_same_v<Sum, float>) {
      if (mixers_.step == nullptr || separate_kernels_) {
        return false;
      }
      const auto state_of = [this](std::size_t i) { return static_cast<void*>(states_.slots_of(i, nullptr).data); };
      StepPlan<Device, Element> plan(config_, weights_, state_of, batch.activations, batch.logits);
      std::vector<Stage>& stages = plan.stages();
      const int blocks = mixers_.step->blocks(config_, rows, stages.size());
      if (blocks == 0) {
        return false;
      }
      divide_among_blocks(stages, blocks);
      batch.stages = Array<std::byte>(device_, static_cast<std::int64_t>(stages.size() * sizeof(Stage)));
      batch.stages.upload(std::as_bytes(std::span(stages)));
      batch.candidates = Array<std::byte>(device_, static_cast<std::int64_t>(candidate_bytes(rows, blocks)));
      batch.arrivals = Array<std::uint32_t>(device_, 2);
      StepInputs inputs;
      inputs.stages = reinterpret_cast<const Stage*>(batch.stages.data());
      inputs.stage_count = static_cast<std::int32_t>(stages.size());
      inputs.rows = static_cast<std::int32_t>(rows);
      inputs.tokens = batch.tokens.data();
      inputs.positions = batch.positions.data();
      inputs.slots = batch.slots.data();
      inputs.slot_count = states_.slots_of(0, nullptr).count;
      inputs.slot_stride = states_.slots_of(0, nullptr).slot_stride;
      inputs.heads = static_cast<std::int32_t>(config_.heads);
      inputs.window_kv_heads = static_cast<std::int32_t>(config_.window_kv_heads);
      inputs.channels = static_cast<std::int32_t>(config_.channels);
      inputs.vocabulary = static_cast<std::int32_t>(config_.vocabulary);
      inputs.norm_epsilon = static_cast<float>(config_.norm_epsilon);
      inputs.window_scale = config_.window_scale;
      inputs.candidates = batch.candidates.data();
      inputs.arrivals = batch.arrivals.data();
      const auto run = [&] { device_.launch_step(*mixers_.step, inputs, blocks); };
      run();  // rows of padding, as below
      batch.graph = device_.capture(run);
      batch.logits.rows = rows;
      return true;
    } else {
      return false;
    }
  }

  static Pass pass_of(const StepBatch& batch, std::int64_t rows) {
    Pass pass;
    pass.rows = rows;
    pass.tokens = batch.tokens.data();
    pass.positions = batch.positions.data();
    pass.slots = batch.slots.data();
    return pass;
  }

  void count_steps(std::span<const std::int32_t> of_slots, std::int64_t steps) {
    for (const std::int32_t slot : of_slots) {
      if (slot != jrt::skip_slot) {
        tokens_read_[checked(slot)] += steps;
      }
    }
  }

  /// `after_layer`, if there is one, is told how many layers are done.
  void run_layers(const Pass& pass, Activations<Device, Element>& a, const std::function<void(std::int64_t)>& after_layer) {
    device_.embed(pass.tokens, pass.rows, weights_.embedding.weight.data(), config_.width, a.residual.data());
    for (std::size_t i = 0; i < weights_.layers.size(); ++i) {
      const Layer& layer = weights_.layers[i];
      const auto* const kinds = config_.layers.data();
      if (pass.one_of_each && std::find(kinds, kinds + i, kinds[i]) != kinds + i) {
        continue;
      }
      switch (kinds[i]) {
        case MixerKind::convolution:
          convolve(i, pass, a);
          break;
        case MixerKind::linear:
          attend_linearly(i, pass, a);
          break;
        case MixerKind::window:
          attend_in_window(i, pass, a);
          break;
      }
      const std::int64_t hidden_columns = device_.multiply_normed_gated(
          layer.mlp_input, norm(layer.mlp_norm), a.residual.data(), pass.rows, a.normed.data(), a.projected.data());
      device_.multiply_add(layer.mlp_output, a.projected.data(), hidden_columns, pass.rows, a.residual.data(),
                           config_.width);
      if (after_layer) {
        after_layer(static_cast<std::int64_t>(i) + 1);
      }
    }
  }

  [[nodiscard]] Norm<Sum> norm(const Array<Sum>& weight) const { return {weight.data(), config_.norm_epsilon}; }

  /// The mixer's projection of the normalised residual stream.
  void project(const Layer& layer, const Pass& pass, Activations<Device, Element>& a) {
    device_.multiply_normed(layer.input, norm(layer.mixer_norm), a.residual.data(), pass.rows, a.normed.data(),
                            a.projected.data(), layer.input.out);
  }

  /// Logits of some rows of the residual stream (all if there is no list), behind those that are there.
  void finish(Activations<Device, Element>& a, const std::int32_t* rows, std::int64_t count, Logits& logits) {
    const Norm<Sum> final_norm = norm(weights_.final_norm);
    const std::int64_t columns = config_.vocabulary_rows;
    Sum* const values = logits.values.data() + logits.rows * columns;
    if (rows == nullptr) {
      device_.multiply_normed(weights_.embedding, final_norm, a.residual.data(), count, a.normed.data(), values, columns);
    } else {
      device_.rms_norm(final_norm, a.residual.data(), rows, count, config_.width, a.normed.data());
      device_.multiply(weights_.embedding, a.normed.data(), config_.width, count, values, columns);
    }
    device_.argmax(values, count, columns, config_.vocabulary, logits.likeliest.data() + logits.rows);
    logits.rows += count;
  }

  /// Runs one mixer on the states of layer `i`.
  template <class Tensors>
  void run_mixer(const Mixer<typename Device::Execution, Tensors>& mixer, const Tensors& tensors, std::size_t i,
                 const Pass& pass, Activations<Device, Element>& a) {
    MixerCall call;
    call.is_step = pass.is_step();
    call.sequences = pass.sequences;
    call.continues = pass.continues;
    call.states = states_.slots_of(i, pass.slots);
    call.workspace = [this, &a](std::size_t bytes) { return a.workspace(device_, bytes); };
    if (ranked_.link == nullptr || pass.is_step()) {
      mixer.run(tensors, call, device_.execution());
    } else {
      mixer.run_piece(tensors, call, *ranked_.layout, *ranked_.link, device_.execution());
    }
  }

  void convolve(std::size_t i, const Pass& pass, Activations<Device, Element>& a) {
    const Layer& layer = weights_.layers[i];
    const std::int64_t channels = config_.channels;
    Element* const projected = a.projected.data();
    project(layer, pass, a);
    ConvolutionTensors<Element> tensors;
    tensors.input = pass.part(projected, 2 * channels, 0, 1, channels);
    tensors.gate = pass.part(projected, 2 * channels, channels, 1, channels);
    tensors.output = pass.part(a.mixed.data(), channels, 0, 1, channels);
    tensors.weight = layer.convolution_weight.data();
    tensors.bias = layer.convolution_bias.data();
    run_mixer(*mixers_.convolution, tensors, i, pass, a);
    device_.multiply_add(layer.output, a.mixed.data(), channels, pass.rows, a.residual.data(), config_.width);
  }

  void attend_linearly(std::size_t i, const Pass& pass, Activations<Device, Element>& a) {
    const Layer& layer = weights_.layers[i];
    const std::int64_t heads = config_.heads;
    const std::int64_t d = config_.shape.feature_dim;
    const std::int64_t dv = config_.shape.head_dim;
    const std::int64_t columns = layer.input.out;           // queries, keys, values of all heads
    const std::int64_t encoder_columns = heads * (d + dv);  // keys, values
    Element* const projected = a.projected.data();
    Element* const encoder = a.encoder.data();
    if (pass.is_step()) {
      project(layer, pass, a);
    } else {
      // Tokens of the encoder region are projected twice: the normalised rows are kept.
      device_.rms_norm(norm(layer.mixer_norm), a.residual.data(), nullptr, pass.rows, config_.width, a.normed.data());
      device_.multiply(layer.input, a.normed.data(), config_.width, pass.rows, projected, columns);
      for (const RowRange& rows : pass.plan->encoder_ranges()) {
        device_.multiply(layer.encoder_input, a.normed.data() + rows.first * config_.width, config_.width, rows.count,
                         encoder + rows.to * encoder_columns, encoder_columns);
      }
      for (const RowRange& rows : pass.plan->zero_keys()) {
        device_.zero_columns(projected + rows.first * columns + heads * d, columns, heads * d, rows.count);
      }
      for (const RowRange& rows : pass.plan->zero_encoder_keys()) {
        device_.zero_columns(encoder + rows.first * encoder_columns, encoder_columns, heads * d, rows.count);
      }
    }
    LinearTensors<Element> tensors;
    tensors.query = pass.part(projected, columns, 0, heads, d);
    tensors.key = pass.part(projected, columns, heads * d, heads, d);
    tensors.value = pass.part(projected, columns, 2 * heads * d, heads, dv);
    tensors.output = pass.part(a.mixed.data(), heads * dv, 0, heads, dv);
    if (!pass.is_step() && pass.plan->encoder_rows() > 0) {
      const std::int64_t rows = pass.plan->encoder_rows();
      tensors.key_encoder = {encoder, 1, rows, heads, d, rows * encoder_columns, encoder_columns, d};
      tensors.value_encoder = {encoder + heads * d, 1, rows, heads, dv, rows * encoder_columns, encoder_columns, dv};
    }
    run_mixer(*mixers_.linear, tensors, i, pass, a);
    device_.multiply_add(layer.output, a.mixed.data(), heads * dv, pass.rows, a.residual.data(), config_.width);
  }

  void attend_in_window(std::size_t i, const Pass& pass, Activations<Device, Element>& a) {
    const Layer& layer = weights_.layers[i];
    const std::int64_t heads = config_.heads;
    const std::int64_t kv_heads = config_.window_kv_heads;
    const std::int64_t d = config_.shape.head_dim;
    const std::int64_t columns = layer.input.out;  // queries, keys, values of all heads
    Element* const projected = a.projected.data();
    project(layer, pass, a);
    if (config_.rotates) {  // here and not in the window's Rotary policy: once, for any kernel
      mixers_.rotation->rotate(device_, pass.positions, pass.rows, projected, columns, heads + kv_heads);
    }
    WindowTensors<Element> tensors;
    tensors.query = pass.part(projected, columns, 0, heads, d);
    tensors.key = pass.part(projected, columns, heads * d, kv_heads, d);
    tensors.value = pass.part(projected, columns, (heads + kv_heads) * d, kv_heads, d);
    tensors.output = pass.part(a.mixed.data(), heads * d, 0, heads, d);
    tensors.scale = config_.window_scale;
    run_mixer(*mixers_.window, tensors, i, pass, a);
    device_.multiply_add(layer.output, a.mixed.data(), heads * d, pass.rows, a.residual.data(), config_.width);
  }

  ModelConfig config_;
  std::int64_t tokens_per_group_;
  bool separate_kernels_;
  Device device_;
  Mixers mixers_;
  ModelWeights<Device, Element> weights_;
  LayerStates<Device, Element> states_;
  std::vector<std::int64_t> tokens_read_;
  Activations<Device, Element> prefill_activations_;
  Logits prefill_logits_;
  Activations<Device, Element> prompt_activations_;
  Logits prompt_logits_;
  PromptGraphs<typename Device::Graph> prompt_graphs_;
  std::map<std::int64_t, std::unique_ptr<StepBatch>> steps_;
  Logits* logits_ = nullptr;
  struct Ranked {
    const jrt::ContextLayout* layout = nullptr;
    RankLink<typename Device::Execution>* link = nullptr;
  };
  Ranked ranked_{};  // while a piece is read
  std::unique_ptr<RankLink<typename Device::Execution>> link_;
  std::optional<PrefillPlan> piece_;  // prepared
  std::vector<std::tuple<std::vector<std::int64_t>, std::vector<std::int64_t>, bool>> rehearsed_;
  bool stepped_in_one_kernel_ = false;
};

}  // namespace jrt_lm
