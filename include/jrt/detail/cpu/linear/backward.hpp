// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/cpu/linear/gradient_passes.hpp"
#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/detail/plan/segment.hpp"
#include "jrt/executor.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Gradients of a batch. For each key/value head two passes over the chunks:
///
///     forward in time    S from the initial state and the encoder region on; gradients of queries
///     backward in time   R from the gradient of the final state on; gradients of keys and values. After the first token R
///                        is the gradient of the initial state, and gives those of the encoder region.
///
/// A mask that reads all tokens has the whole sums in place of the running ones. A sequence that is split takes the three
/// rounds of a prefill (segment sums, state scan, segment gradients), in both directions at once, or one after the other
/// where the second needs the products of outputs that the first forms again. The split does not depend on the number of
/// workers, so neither do the results.
template <AttentionConfig Config>
class Backward {
 public:
  using T = ConfigCompute<Config>;
  using Passes = GradientPasses<Config>;
  using State = typename Passes::State;

  static constexpr bool full = Passes::full;

  Backward(const BackwardArgs<Config>& args, std::int64_t sequences, int workers)
      : passes_(args), sequences_(sequences), heads_(args.key.heads), workers_(workers) {}

  /// Takes all memory from the arena; a counting arena gives the size.
  void take(Arena& arena) {
    first_items_ = arena.take<std::int64_t>(sequences_ + 1);
    std::int64_t total = 0;
    for (std::int64_t b = 0; b < sequences_; ++b) {
      if (first_items_ != nullptr) {
        first_items_[b] = total;
      }
      const Plan plan = plan_of(b);
      total += plan.split() ? plan.items() + 1 : 0;
      max_tasks_ = larger(max_tasks_, plan.split() ? plan.items() : 1);
    }
    if (first_items_ != nullptr) {
      first_items_[sequences_] = total;
    }
    total_items_ = total;
    forward_states_ = arena.take<T>(total * heads_ * State::elements);
    reverse_states_ = arena.take<T>(total * heads_ * State::elements);
    scratch_base_ = arena.take<T>(workers_ * scratch_elements());
    passes_.take(arena);
  }

  template <Executor E>
  void run(E&& executor) {
    for (int w = 0; w < workers_; ++w) {
      scratch_of(w).clear();
    }
    if constexpr (recomputes_output_products<Config>) {
      run_passes(executor, {.reverse = false});
      if (passes_.wants_reverse()) {
        run_passes(executor, {.forward = false});
      }
    } else {
      run_passes(executor, {});
    }
  }

 private:
  using Plan = PrefillPlan;
  using Scratch = typename Passes::Scratch;

  template <Executor E>
  void run_passes(E&& executor, const Directions& directions) {
    if (total_items_ > 0) {
      executor.run(total_items_ * heads_, [&](std::int64_t task, int worker) {
        Scratch scratch = scratch_of(worker);
        sum(task / heads_, task % heads_, directions, scratch);
      });
      executor.run(sequences_ * heads_, [&](std::int64_t task, int) { scan(task / heads_, task % heads_, directions); });
    }
    executor.run(sequences_ * max_tasks_ * heads_, [&](std::int64_t task, int worker) {
      const std::int64_t item = task / heads_;
      Scratch scratch = scratch_of(worker);
      gradients(item / max_tasks_, item % max_tasks_, task % heads_, directions, scratch);
    });
  }

  [[nodiscard]] bool goes_forward(const Directions& directions) const {
    return directions.forward && passes_.wants_forward();
  }
  [[nodiscard]] bool goes_back(const Directions& directions) const { return directions.reverse && passes_.wants_reverse(); }

  [[nodiscard]] Plan plan_of(std::int64_t b) const {
    return passes_.plan_of({sequences_ * heads_, backward_workers, chunk_tokens}, b);
  }

  // -- split sequences -------------------------------------------------------------------------------------------------
  // A split sequence has a state in each direction for every item of its plan, and one more for the running total.

  [[nodiscard]] State forward_state(std::int64_t item, std::int64_t head) const {
    return {forward_states_ + (item * heads_ + head) * State::elements};
  }
  [[nodiscard]] State reverse_state(std::int64_t item, std::int64_t head) const {
    return {reverse_states_ + (item * heads_ + head) * State::elements};
  }

  void sum(std::int64_t item, std::int64_t head, const Directions& directions, Scratch& scratch) const {
    const std::int64_t b = std::upper_bound(first_items_, first_items_ + sequences_ + 1, item) - first_items_ - 1;
    const Plan plan = plan_of(b);
    const std::int64_t index = item - first_items_[b];
    if (index == plan.items()) {
      return;  // the total
    }
    const State forward = forward_state(item, head);
    if (goes_forward(directions)) {
      forward.clear();
    }
    if (index < plan.encoder_segments) {
      if (goes_forward(directions)) {
        const TokenRange range = segment_of(plan.encoder, plan.encoder_segments, index, chunk_tokens);
        passes_.add_encoder(plan, range, head, forward, scratch.keys);
      }
      return;
    }
    const TokenRange range = segment_of(plan.tokens, plan.token_segments, index - plan.encoder_segments, chunk_tokens);
    if (goes_forward(directions)) {
      passes_.add_tokens(plan, range, head, forward, scratch.keys);
    }
    if (goes_back(directions)) {
      const State reverse = reverse_state(item, head);
      reverse.clear();
      passes_.add_queries(plan.span, range, head, reverse, scratch.queries);
    }
  }

  /// The item takes the running total, to which its own sum is added.
  static void start_from(const State& running, const State& item) {
    for (std::int64_t i = 0; i < State::elements; ++i) {
      const T own_sum = item.data[i];
      item.data[i] = running.data[i];
      running.data[i] += own_sum;
    }
  }

  /// Replaces the sums of token segments by the states that their passes start from, unless the mask reads all tokens.
  void scan(std::int64_t b, std::int64_t head, const Directions& directions) const {
    const Plan plan = plan_of(b);
    if (!plan.split()) {
      return;
    }
    const std::int64_t first = first_items_[b];
    const std::int64_t tokens = first + plan.encoder_segments;
    const std::int64_t end = first + plan.items();
    if (goes_forward(directions)) {
      const State total = forward_state(end, head);
      total.clear();
      passes_.add_initial_state(b, head, total);
      for (std::int64_t item = first; item < end; ++item) {
        if (full || item < tokens) {
          total.add(forward_state(item, head));
        } else {
          start_from(total, forward_state(item, head));
        }
      }
    }
    if (goes_back(directions)) {
      const State total = reverse_state(end, head);
      total.clear();
      passes_.add_final_gradient(b, head, total);
      for (std::int64_t item = end - 1; item >= tokens; --item) {
        if (full) {
          total.add(reverse_state(item, head));
        } else {
          start_from(total, reverse_state(item, head));
        }
      }
      passes_.write_initial_gradient(b, head, total);
    }
  }

  void gradients(std::int64_t b, std::int64_t task, std::int64_t head, const Directions& directions,
                 Scratch& scratch) const {
    const Plan plan = plan_of(b);
    if (task == 0 && directions.forward) {
      passes_.zero_gradients(plan, head);
    }
    if (plan.skipped || task >= (plan.split() ? plan.items() : 1)) {
      return;
    }
    if (plan.split()) {
      const std::int64_t item = first_items_[b] + task;
      const std::int64_t total = first_items_[b] + plan.items();
      if (task < plan.encoder_segments) {
        if (directions.reverse) {
          const TokenRange range = segment_of(plan.encoder, plan.encoder_segments, task, chunk_tokens);
          passes_.encoder_pass(plan, range, head, reverse_state(total, head), scratch);
        }
        return;
      }
      const TokenRange range = segment_of(plan.tokens, plan.token_segments, task - plan.encoder_segments, chunk_tokens);
      if (directions.forward) {
        passes_.query_pass(plan, range, head, forward_state(full ? total : item, head), scratch);
      }
      if (directions.reverse) {
        passes_.key_pass(plan, range, head, reverse_state(full ? total : item, head), scratch);
      }
      return;
    }
    const State state{scratch.state};
    if (goes_forward(directions)) {
      state.clear();
      passes_.add_initial_state(b, head, state);
      passes_.add_encoder(plan, plan.encoder, head, state, scratch.keys);
      if constexpr (full) {
        passes_.add_tokens(plan, plan.tokens, head, state, scratch.keys);
      }
      passes_.query_pass(plan, plan.tokens, head, state, scratch);
    }
    if (goes_back(directions)) {
      state.clear();
      passes_.add_final_gradient(b, head, state);
      if constexpr (full) {
        passes_.add_queries(plan.span, plan.tokens, head, state, scratch.queries);
      }
      passes_.key_pass(plan, plan.tokens, head, state, scratch);
      passes_.encoder_pass(plan, plan.encoder, head, state, scratch);
      passes_.write_initial_gradient(b, head, state);
    }
  }

  static std::int64_t scratch_elements() { return static_cast<std::int64_t>(counted_bytes(Scratch()) / sizeof(T)); }

  [[nodiscard]] Scratch scratch_of(int worker) const {
    T* const base = scratch_base_ + worker * scratch_elements();
    Arena arena(Workspace{base, static_cast<std::size_t>(scratch_elements()) * sizeof(T)});
    Scratch scratch;
    scratch.take(arena);
    return scratch;
  }

  Passes passes_;
  std::int64_t sequences_;
  std::int64_t heads_;
  int workers_;
  std::int64_t* first_items_ = nullptr;  // [sequences + 1] first item of each split sequence
  std::int64_t total_items_ = 0;
  std::int64_t max_tasks_ = 1;   // of a sequence and head
  T* forward_states_ = nullptr;  // [total_items][heads][State::elements]
  T* reverse_states_ = nullptr;  // likewise
  T* scratch_base_ = nullptr;    // [workers][scratch_elements]
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
