// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/ranked_model.hpp"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <future>
#include <jrt/distributed/context_layout.hpp>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "jrt_lm/prefill_plan.hpp"
#include "jrt_lm/ranks.hpp"

namespace jrt_lm {

namespace {

/// Seconds. On the CPU, whose prompts may take hours, each exchange has a limit of its own.
double limit_of(DeviceKind device) {
  return device == DeviceKind::cuda ? 600 : 1e7;
}

class RankedModel final : public LanguageModel {
 public:
  RankedModel(std::vector<std::unique_ptr<LanguageModel>> models, double seconds)
      : models_(std::move(models)), seconds_(seconds) {
    connect();
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
    if (group_ == nullptr) {
      connect();
    }
    std::barrier<> ready(ranks);
    std::atomic<bool> all_ready = true;
    run_ranks([&](int rank, std::atomic<std::int64_t>& layers) {
      LanguageModel& model = *models_[static_cast<std::size_t>(rank)];
      model.use_device();
      try {
        model.prepare_piece(ranked, rank);
      } catch (...) {
        all_ready = false;
        ready.arrive_and_drop();
        throw;
      }
      ready.arrive_and_wait();
      if (all_ready) {
        model.read_piece(ranked, rank, [&](std::int64_t count) { layers = count; });
      }
    });
  }

  void step(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots) override {
    last().step(tokens, of_slots);
  }
  std::vector<std::int32_t> greedy_steps(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots,
                                         std::int64_t steps) override {
    return last().greedy_steps(tokens, of_slots, steps);
  }
  void staged_step(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots) override {
    last().staged_step(tokens, of_slots);
  }
  void commit(std::span<const std::int32_t> accepted) override { last().commit(accepted); }
  std::vector<std::int32_t> speculative_step(std::span<const std::int32_t> tokens,
                                             std::span<const std::int32_t> of_slots) override {
    return last().speculative_step(tokens, of_slots);
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
  void join(RankGroup& group, int rank) override { last().join(group, rank); }
  void prepare_piece(const RankedPrompt& prompt, int rank) override { last().prepare_piece(prompt, rank); }
  void read_piece(const RankedPrompt& prompt, int rank, const std::function<void(std::int64_t)>& enqueued) override {
    last().read_piece(prompt, rank, enqueued);
  }

 private:
  [[nodiscard]] LanguageModel& last() const { return *models_.back(); }

  /// A new connection; that of a call which failed is of no more use.
  void connect() {
    last().use_device();
    std::unique_ptr<RankGroup> group = last().make_group(static_cast<int>(models_.size()));
    for (std::size_t rank = 0; rank < models_.size(); ++rank) {
      models_[rank]->use_device();
      models_[rank]->join(*group, static_cast<int>(rank));
    }
    group_ = std::move(group);  // the last one's device is this thread's
  }

  /// `function(rank, layers)` in a thread for each, which keeps count of the layers that are on their way. An error of one
  /// of them, or the time limit, ends the exchanges of all; what came first is thrown, not what followed from it.
  void run_ranks(const std::function<void(int, std::atomic<std::int64_t>&)>& function) {
    struct Rank {
      std::thread thread;
      std::atomic<std::int64_t> layers = 0;
      bool ended = false;
    };
    std::vector<Rank> ranks(models_.size());
    std::mutex mutex;
    std::condition_variable changed;
    std::exception_ptr error;
    bool error_followed = false;
    // No rank begins before all have a thread: it would wait for those that have none.
    std::promise<bool> all_have_threads;
    const auto begin = [&, answer = all_have_threads.get_future().share()](std::size_t i) {
      ranks[i].thread = std::thread([&, answer, i] {
        if (!answer.get()) {
          return;
        }
        std::exception_ptr own;
        bool followed = false;
        try {
          function(static_cast<int>(i), ranks[i].layers);
        } catch (const FollowedAnother&) {
          own = std::current_exception();
          followed = true;
        } catch (...) {
          own = std::current_exception();
        }
        const std::lock_guard lock(mutex);
        ranks[i].ended = true;
        if (own != nullptr && (error == nullptr || (error_followed && !followed))) {
          error = own;
          error_followed = followed;
        }
        changed.notify_all();
      });
    };
    try {
      for (std::size_t i = 0; i < ranks.size(); ++i) {
        begin(i);
      }
    } catch (...) {
      all_have_threads.set_value(false);
      for (Rank& rank : ranks) {
        if (rank.thread.joinable()) {
          rank.thread.join();
        }
      }
      throw;
    }
    all_have_threads.set_value(true);
    const auto all_ended = [&] {
      return std::all_of(ranks.begin(), ranks.end(), [](const Rank& rank) { return rank.ended; });
    };
    const auto report = [&] {
      std::string text;
      for (std::size_t i = 0; i < ranks.size(); ++i) {
        text += "; rank " + std::to_string(i) +
                (ranks[i].ended ? " has ended" : " has enqueued " + std::to_string(ranks[i].layers.load()) + " layers");
      }
      return text;
    };
    {
      std::unique_lock lock(mutex);
      const bool in_time = changed.wait_for(lock, std::chrono::duration<double>(std::min(seconds_, 1e7)),
                                            [&] { return all_ended() || error != nullptr; });
      if (!in_time) {
        error = std::make_exception_ptr(
            std::runtime_error("ranks have not read their prompt within " + std::to_string(seconds_) + " s" + report()));
      }
      if (error != nullptr) {
        group_->abort();
        if (!changed.wait_for(lock, std::chrono::seconds(30), all_ended)) {
          // A thread that waits within the driver cannot be ended, nor can this function be left without it.
          std::fprintf(stderr, "jrt_lm: a rank waits for its device and cannot be ended%s\n", report().c_str());
          std::_Exit(1);
        }
      }
    }
    for (Rank& rank : ranks) {
      rank.thread.join();
    }
    if (error != nullptr) {
      try {
        connect();
      } catch (const std::exception&) {
        group_ = nullptr;  // the next prompt tries again; what went wrong first says more
        last().use_device();
      }
      std::rethrow_exception(error);
    }
  }

  std::vector<std::unique_ptr<LanguageModel>> models_;
  double seconds_;
  std::unique_ptr<RankGroup> group_;
};

}  // namespace

std::unique_ptr<LanguageModel> make_ranked_model(int ranks, const ModelConfig& config, const WeightSource& weights,
                                                 const ModelOptions& options) {
  if (ranks < 1 || !(options.rank_seconds >= 0)) {
    throw std::invalid_argument("ranks and their seconds are " + std::to_string(ranks) + " and " +
                                std::to_string(options.rank_seconds) + ", but must be at least 1 and 0");
  }
  if (ranks == 1) {
    return make_model(config, weights, options);
  }
  if (options.device == DeviceKind::cuda) {
    // A kernel that is loaded when it is first used may have to wait for one that waits for another rank; and NCCL may
    // connect ranks now.
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    setenv("NCCL_RUNTIME_CONNECT", "0", 0);
  }
  ModelOptions of_rank = options;
  of_rank.threads = std::max(1, options.device == DeviceKind::cpu ? options.threads / ranks : options.threads);
  std::vector<std::unique_ptr<LanguageModel>> models;
  for (of_rank.rank = 0; of_rank.rank < ranks; ++of_rank.rank) {
    models.push_back(make_model(config, weights, of_rank));
  }
  return join_models(std::move(models), options.rank_seconds > 0 ? options.rank_seconds : limit_of(options.device));
}

std::unique_ptr<LanguageModel> join_models(std::vector<std::unique_ptr<LanguageModel>> models, double seconds) {
  return std::make_unique<RankedModel>(std::move(models), seconds);
}

}  // namespace jrt_lm
