// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/ranked_model.hpp"

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <jrt/distributed/context_layout.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "jrt_lm/prefill_plan.hpp"
#include "jrt_lm/ranks.hpp"

namespace jrt_lm {

namespace {

class RankedModel final : public LanguageModel {
 public:
  RankedModel(int ranks, const ModelConfig& config, const WeightSource& weights, ModelOptions options) {
    options.threads = std::max(1, options.device == DeviceKind::cpu ? options.threads / ranks : options.threads);
    for (int rank = 0; rank < ranks; ++rank) {
      options.rank = rank;
      models_.push_back(make_model(config, weights, options));
    }
    group_ = last().make_group(ranks);
    last().use_device();
  }

  [[nodiscard]] const ModelConfig& config() const override { return last().config(); }
  [[nodiscard]] std::int64_t slots() const override { return last().slots(); }
  [[nodiscard]] std::int64_t state_bytes() const override { return last().state_bytes(); }
  [[nodiscard]] std::int64_t device_bytes() const override { return last().device_bytes(); }
  [[nodiscard]] std::string device_name() const override {
    return std::to_string(models_.size()) + " ranks, each " + last().device_name();
  }
  [[nodiscard]] std::int64_t tokens_read(std::int32_t slot) const override { return last().tokens_read(slot); }
  [[nodiscard]] bool stepped_in_one_kernel() const override { return last().stepped_in_one_kernel(); }
  void use_device() override { last().use_device(); }
  void synchronize() override { last().synchronize(); }

  /// Of one prompt that gives every rank enough; others are the last rank's.
  void prefill(std::span<const Prompt> prompts, LogitsOf rows, const Progress& progress) override {
    const auto ranks = static_cast<std::int64_t>(models_.size());
    const std::int64_t least = std::max<std::int64_t>(64, config().shape.left_window + 1 + config().shape.kernel_width);
    if (prompts.size() != 1 || rows != LogitsOf::last_tokens || prompts[0].zero_keys > 0 ||
        std::ssize(prompts[0].tokens) < 2 * least * ranks) {
      last().prefill(prompts, rows, progress);
      return;
    }
    const Prompt& prompt = prompts[0];
    std::vector<std::int64_t> read(static_cast<std::size_t>(slots()));
    for (std::int64_t slot = 0; slot < slots(); ++slot) {
      read[static_cast<std::size_t>(slot)] = tokens_read(static_cast<std::int32_t>(slot));
    }
    check_prompts(config(), read, prompts);
    RankedPrompt ranked;
    ranked.tokens = prompt.tokens;
    ranked.slot = prompt.slot;
    ranked.continues = prompt.continues;
    ranked.tokens_before = prompt.continues ? tokens_read(prompt.slot) : 0;
    ranked.pieces.resize(models_.size());
    jrt::divide_tokens(std::ssize(prompt.tokens), static_cast<int>(ranks), 64, ranked.pieces.data());
    std::int64_t first = 0;
    for (const std::int64_t piece : ranked.pieces) {
      ranked.encoder_pieces.push_back(std::clamp<std::int64_t>(prompt.prefix - first, 0, piece));
      first += piece;
    }
    if (prompt.continues) {
      const std::vector<std::byte> state = last().save(prompt.slot);
      models_[0]->use_device();
      models_[0]->load(state, prompt.slot);
      last().use_device();
    }
    std::barrier<> ready(ranks);
    run_ranks([&](int rank) {
      LanguageModel& model = *models_[static_cast<std::size_t>(rank)];
      model.use_device();
      try {
        model.reserve_piece(ranked, rank);
      } catch (...) {
        ready.arrive_and_drop();
        throw;
      }
      ready.arrive_and_wait();
      model.prefill_piece(ranked, rank, *group_);
    });
  }

  void step(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots) override {
    last().step(tokens, of_slots);
  }
  std::vector<std::int32_t> greedy_steps(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots,
                                         std::int64_t steps) override {
    return last().greedy_steps(tokens, of_slots, steps);
  }
  [[nodiscard]] std::vector<double> logits() override { return last().logits(); }
  [[nodiscard]] std::vector<std::int32_t> likeliest() override { return last().likeliest(); }
  [[nodiscard]] std::int64_t first_not_finite(std::int32_t token, std::int32_t slot) override {
    return last().first_not_finite(token, slot);
  }
  void fork(std::int32_t from, std::int32_t to) override { last().fork(from, to); }
  [[nodiscard]] std::vector<std::byte> save(std::int32_t slot) override { return last().save(slot); }
  void load(std::span<const std::byte> bytes, std::int32_t slot) override { last().load(bytes, slot); }

  [[nodiscard]] std::unique_ptr<RankGroup> make_group(int ranks) override { return last().make_group(ranks); }
  void reserve_piece(const RankedPrompt& prompt, int rank) override { last().reserve_piece(prompt, rank); }
  void prefill_piece(const RankedPrompt& prompt, int rank, RankGroup& group) override {
    last().prefill_piece(prompt, rank, group);
  }

 private:
  [[nodiscard]] LanguageModel& last() const { return *models_.back(); }

  /// `function(rank)` in a thread for each; the first rank's error of those that failed.
  void run_ranks(const std::function<void(int)>& function) {
    std::vector<std::exception_ptr> errors(models_.size());
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < models_.size(); ++rank) {
      threads.emplace_back([&, rank] {
        try {
          function(static_cast<int>(rank));
        } catch (...) {
          errors[rank] = std::current_exception();
        }
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    for (const std::exception_ptr& error : errors) {
      if (error != nullptr) {
        group_ = last().make_group(static_cast<int>(models_.size()));  // that of the failed call is of no more use
        std::rethrow_exception(error);
      }
    }
  }

  std::vector<std::unique_ptr<LanguageModel>> models_;
  std::unique_ptr<RankGroup> group_;
};

}  // namespace

std::unique_ptr<LanguageModel> make_ranked_model(int ranks, const ModelConfig& config, const WeightSource& weights,
                                                 const ModelOptions& options) {
  if (ranks > 1 && options.device == DeviceKind::cuda) {
    // A kernel that is loaded when it is first used may have to wait for one that waits for another rank.
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
  }
  if (ranks < 1) {
    throw std::invalid_argument("ranks are " + std::to_string(ranks) + ", but must be at least 1");
  }
  return ranks == 1 ? make_model(config, weights, options) : std::make_unique<RankedModel>(ranks, config, weights, options);
}

}  // namespace jrt_lm
