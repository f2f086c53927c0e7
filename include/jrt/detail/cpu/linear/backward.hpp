// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/cpu/linear/chunk.hpp"
#include "jrt/detail/cpu/linear/gradient_chunk.hpp"
#include "jrt/detail/cpu/linear/working_state.hpp"
#include "jrt/detail/plan/backward_plan.hpp"
#include "jrt/detail/plan/segment.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/executor.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/tensor_view.hpp"
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
/// rounds of a prefill (segment sums, state scan, segment gradients), in both directions at once. The split does not depend
/// on the number of workers, so neither do the results.
template <AttentionConfig Config>
class Backward {
 public:
  using T = ConfigCompute<Config>;
  using Args = BackwardArgs<Config>;
  using Element = typename Config::Element;
  using Keys = KeyChunk<Config>;
  using Queries = QueryChunk<Config>;
  using State = typename Keys::State;

  static constexpr bool full = Config::Mask::reads_future;

  Backward(const Args& args, std::int64_t sequences, int workers)
      : args_(args), inputs_(inputs_of(args)), sequences_(sequences), heads_(args.key.heads), workers_(workers) {}

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
  }

  template <Executor E>
  void run(E&& executor) {
    for (int w = 0; w < workers_; ++w) {
      const Scratch scratch = scratch_of(w);
      scratch.keys.clear();
      scratch.queries.clear();
      scratch.chunk.clear();
    }
    if (total_items_ > 0) {
      executor.run(total_items_ * heads_, [this](std::int64_t task, int worker) {
        Scratch scratch = scratch_of(worker);
        sum(task / heads_, task % heads_, scratch);
      });
      executor.run(sequences_ * heads_, [this](std::int64_t task, int) { scan(task / heads_, task % heads_); });
    }
    executor.run(sequences_ * max_tasks_ * heads_, [this](std::int64_t task, int worker) {
      const std::int64_t item = task / heads_;
      Scratch scratch = scratch_of(worker);
      gradients(item / max_tasks_, item % max_tasks_, task % heads_, scratch);
    });
  }

 private:
  using Plan = PrefillPlan;

  struct Scratch {
    Keys keys;
    Queries queries;
    GradientChunk<Config> chunk;
    T* state = nullptr;  // [State::elements]

    void take(Arena& arena) {
      keys.take(arena);
      queries.take(arena);
      chunk.take(arena);
      state = arena.take<T>(State::elements);
    }
  };

  [[nodiscard]] Plan plan_of(std::int64_t b) const {
    return plan_backward(args_, inputs_, {sequences_ * heads_, backward_workers, chunk_tokens}, b);
  }
  [[nodiscard]] KeySource<Element> tokens_of(const Plan& plan, std::int64_t head) const {
    return token_source(inputs_, plan, head);
  }
  [[nodiscard]] KeySource<Element> encoder_of(const Plan& plan, std::int64_t head) const {
    return encoder_source(inputs_, plan, head);
  }
  [[nodiscard]] std::int64_t query_group() const { return args_.query.heads / larger<std::int64_t>(args_.key.heads, 1); }

  static bool wanted(const TensorView<Element>& gradient) { return gradient.data != nullptr; }
  [[nodiscard]] bool wants_queries() const { return wanted(args_.query_gradient); }
  [[nodiscard]] bool wants_tokens() const { return wanted(args_.key_gradient) || wanted(args_.value_gradient); }
  [[nodiscard]] bool wants_encoder() const {
    return wanted(args_.key_encoder_gradient) || wanted(args_.value_encoder_gradient);
  }
  /// Whether anything needs R.
  [[nodiscard]] bool wants_reverse() const {
    return wants_tokens() || wants_encoder() || !args_.initial_state_gradient.empty();
  }

  // -- split sequences -------------------------------------------------------------------------------------------------
  // A split sequence has a state in each direction for every item of its plan, and one more for the running total.

  [[nodiscard]] State forward_state(std::int64_t item, std::int64_t head) const {
    return {forward_states_ + (item * heads_ + head) * State::elements};
  }
  [[nodiscard]] State reverse_state(std::int64_t item, std::int64_t head) const {
    return {reverse_states_ + (item * heads_ + head) * State::elements};
  }

  void sum(std::int64_t item, std::int64_t head, Scratch& scratch) const {
    const std::int64_t b = std::upper_bound(first_items_, first_items_ + sequences_ + 1, item) - first_items_ - 1;
    const Plan plan = plan_of(b);
    const std::int64_t index = item - first_items_[b];
    if (index == plan.items()) {
      return;  // the total
    }
    const State forward = forward_state(item, head);
    forward.clear();
    if (index < plan.encoder_segments) {
      if (wants_queries()) {
        const TokenRange range = segment_of(plan.encoder, plan.encoder_segments, index, chunk_tokens);
        add_keys(encoder_of(plan, head), range, forward, scratch.keys);
      }
      return;
    }
    const TokenRange range = segment_of(plan.tokens, plan.token_segments, index - plan.encoder_segments, chunk_tokens);
    if (wants_queries()) {
      add_keys(tokens_of(plan, head), range, forward, scratch.keys);
    }
    if (wants_reverse()) {
      const State reverse = reverse_state(item, head);
      reverse.clear();
      add_queries(plan.span, range, head, reverse, scratch.queries);
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
  void scan(std::int64_t b, std::int64_t head) const {
    const Plan plan = plan_of(b);
    if (!plan.split()) {
      return;
    }
    const std::int64_t first = first_items_[b];
    const std::int64_t tokens = first + plan.encoder_segments;
    const std::int64_t end = first + plan.items();
    if (wants_queries()) {
      const State total = forward_state(end, head);
      total.clear();
      add_initial_state(b, head, total);
      for (std::int64_t item = first; item < end; ++item) {
        if (full || item < tokens) {
          total.add(forward_state(item, head));
        } else {
          start_from(total, forward_state(item, head));
        }
      }
    }
    if (wants_reverse()) {
      const State total = reverse_state(end, head);
      total.clear();
      add_final_gradient(b, head, total);
      for (std::int64_t item = end - 1; item >= tokens; --item) {
        if (full) {
          total.add(reverse_state(item, head));
        } else {
          start_from(total, reverse_state(item, head));
        }
      }
      write_initial_gradient(b, head, total);
    }
  }

  // -- passes ----------------------------------------------------------------------------------------------------------

  void gradients(std::int64_t b, std::int64_t task, std::int64_t head, Scratch& scratch) const {
    const Plan plan = plan_of(b);
    if (task == 0) {
      zero_gradients(plan, head);
    }
    if (plan.skipped || task >= (plan.split() ? plan.items() : 1)) {
      return;
    }
    if (plan.split()) {
      const std::int64_t item = first_items_[b] + task;
      const std::int64_t total = first_items_[b] + plan.items();
      if (task < plan.encoder_segments) {
        const TokenRange range = segment_of(plan.encoder, plan.encoder_segments, task, chunk_tokens);
        encoder_pass(plan, range, head, reverse_state(total, head), scratch);
      } else {
        const TokenRange range = segment_of(plan.tokens, plan.token_segments, task - plan.encoder_segments, chunk_tokens);
        query_pass(plan, range, head, forward_state(full ? total : item, head), scratch);
        key_pass(plan, range, head, reverse_state(full ? total : item, head), scratch);
      }
      return;
    }
    const State state{scratch.state};
    if (wants_queries()) {
      state.clear();
      add_initial_state(b, head, state);
      add_keys(encoder_of(plan, head), plan.encoder, state, scratch.keys);
      if constexpr (full) {
        add_keys(tokens_of(plan, head), plan.tokens, state, scratch.keys);
      }
      query_pass(plan, plan.tokens, head, state, scratch);
    }
    if (wants_reverse()) {
      state.clear();
      add_final_gradient(b, head, state);
      if constexpr (full) {
        add_queries(plan.span, plan.tokens, head, state, scratch.queries);
      }
      key_pass(plan, plan.tokens, head, state, scratch);
      encoder_pass(plan, plan.encoder, head, state, scratch);
      write_initial_gradient(b, head, state);
    }
  }

  /// Gradients of queries. The state goes from that before the range to that after it, unless the mask reads all tokens.
  void query_pass(const Plan& plan, const TokenRange& range, std::int64_t head, const State& state,
                  Scratch& scratch) const {
    if (!wants_queries()) {
      return;
    }
    const KeySource<Element> source = tokens_of(plan, head);
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk_tokens) {
      const TokenRange tokens = chunk_from(range, begin);
      if constexpr (!full) {
        scratch.keys.read(source, tokens, args_.feature_map, false);
      }
      for (std::int64_t h = head * query_group(); h < (head + 1) * query_group(); ++h) {
        scratch.queries.read(args_, plan.span, tokens, h);
        scratch.chunk.of_queries(scratch.queries, state, full ? nullptr : &scratch.keys, args_.feature_map, plan.span,
                                 tokens.begin);
        write_columns(args_.query_gradient, plan.span.batch_row, plan.span.first_token, tokens, h, 0,
                      scratch.chunk.inputs_gradient);
      }
      if constexpr (!full) {
        scratch.keys.add_to(state, source, chunk_from(range, begin + chunk_tokens));
      }
    }
  }

  /// Gradients of keys and values, last chunk first. R goes from that after the range to that before it, unless the mask
  /// reads all tokens.
  void key_pass(const Plan& plan, const TokenRange& range, std::int64_t head, const State& reverse,
                Scratch& scratch) const {
    const bool wants_keys = wanted(args_.key_gradient);
    const bool wants_values = wanted(args_.value_gradient);
    const KeySource<Element> source = tokens_of(plan, head);
    for (std::int64_t chunk = ceil_div<std::int64_t>(range.size(), chunk_tokens) - 1; chunk >= 0; --chunk) {
      const TokenRange tokens = chunk_from(range, range.begin + chunk * chunk_tokens);
      if (wants_tokens()) {
        scratch.keys.read(source, tokens, args_.feature_map, true);
        scratch.chunk.begin_keys(scratch.keys, reverse, wants_keys, wants_values);
      }
      if constexpr (!full) {
        for (std::int64_t h = head * query_group(); h < (head + 1) * query_group(); ++h) {
          scratch.queries.read(args_, plan.span, tokens, h);
          scratch.queries.expand(args_.feature_map, plan.span, tokens.begin);
          if (wants_tokens()) {
            scratch.chunk.add_queries(scratch.queries, scratch.keys, args_.feature_map, wants_keys, wants_values);
          }
          scratch.queries.add_to(reverse);
        }
      }
      if (wants_keys) {
        scratch.chunk.finish_keys(scratch.keys, args_.feature_map, plan.span, tokens.begin);
        write_columns(args_.key_gradient, plan.span.batch_row, plan.span.first_token, tokens, head, source.zero_keys,
                      scratch.chunk.inputs_gradient);
      }
      if (wants_values) {
        write_values(args_.value_gradient, plan.span.batch_row, plan.span.first_token, tokens, head, scratch.chunk);
      }
    }
  }

  /// Gradients of the encoder region's keys and values, from the sum over all queries.
  void encoder_pass(const Plan& plan, const TokenRange& range, std::int64_t head, const State& reverse,
                    Scratch& scratch) const {
    if (!wants_encoder()) {
      return;
    }
    const bool wants_keys = wanted(args_.key_encoder_gradient);
    const bool wants_values = wanted(args_.value_encoder_gradient);
    const KeySource<Element> source = encoder_of(plan, head);
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk_tokens) {
      const TokenRange tokens = chunk_from(range, begin);
      scratch.keys.read(source, tokens, args_.feature_map, true);
      scratch.chunk.begin_keys(scratch.keys, reverse, wants_keys, wants_values);
      if (wants_keys) {
        scratch.chunk.finish_keys(scratch.keys, args_.feature_map, plan.span, tokens.begin);
        write_columns(args_.key_encoder_gradient, plan.span.encoder_row, plan.span.encoder_first, tokens, head,
                      source.zero_keys, scratch.chunk.inputs_gradient);
      }
      if (wants_values) {
        write_values(args_.value_encoder_gradient, plan.span.encoder_row, plan.span.encoder_first, tokens, head,
                     scratch.chunk);
      }
    }
  }

  // -- sums ------------------------------------------------------------------------------------------------------------

  /// The chunk of a range that begins at `begin`; empty after the range's end.
  static TokenRange chunk_from(const TokenRange& range, std::int64_t begin) {
    return {smaller(begin, range.end), smaller<std::int64_t>(begin + chunk_tokens, range.end)};
  }

  /// S += Σ φ(k) vᵀ over a range.
  void add_keys(const KeySource<Element>& source, const TokenRange& range, const State& state, Keys& keys) const {
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk_tokens) {
      keys.read(source, chunk_from(range, begin), args_.feature_map, false);
      keys.add_to(state, source, chunk_from(range, begin + chunk_tokens));
    }
  }

  /// R += Σ φ(q) gᵀ over a range and the query heads of a key/value head, in the order of the key pass.
  void add_queries(const SequenceSpan& span, const TokenRange& range, std::int64_t head, const State& reverse,
                   Queries& queries) const {
    for (std::int64_t chunk = ceil_div<std::int64_t>(range.size(), chunk_tokens) - 1; chunk >= 0; --chunk) {
      const TokenRange tokens = chunk_from(range, range.begin + chunk * chunk_tokens);
      for (std::int64_t h = head * query_group(); h < (head + 1) * query_group(); ++h) {
        queries.read(args_, span, tokens, h);
        queries.expand(args_.feature_map, span, tokens.begin);
        queries.add_to(reverse);
      }
    }
  }

  void add_initial_state(std::int64_t b, std::int64_t head, const State& state) const {
    if (reads_initial_state(args_.initial_state, args_.has_initial_state, b)) {
      state.add_slot(args_.initial_state.pool.head(args_.initial_state.slot(b), head));
    }
  }
  void add_final_gradient(std::int64_t b, std::int64_t head, const State& reverse) const {
    if (!args_.final_state_gradient.empty()) {
      reverse.add_slot(args_.final_state_gradient.pool.head(args_.final_state_gradient.slot(b), head));
    }
  }
  void write_initial_gradient(std::int64_t b, std::int64_t head, const State& reverse) const {
    if (!args_.initial_state_gradient.empty()) {
      reverse.write(args_.initial_state_gradient.pool.head(args_.initial_state_gradient.slot(b), head));
    }
  }

  // -- results ---------------------------------------------------------------------------------------------------------

  /// Writes a chunk's columns as rows of `to`; those of tokens before `zero_end` are 0.
  void write_columns(const TensorView<Element>& to, std::int64_t row, std::int64_t offset, const TokenRange& tokens,
                     std::int64_t head, std::int64_t zero_end, const T* columns) const {
    for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
      Element* const gradient = to.row(row, offset + token, head);
      const T* const column = columns + (token - tokens.begin);
      for (int i = 0; i < Config::FeatureMap::input_dim; ++i) {
        gradient[i] = convert<Element>(token < zero_end ? T(0) : column[i * Queries::column_stride]);
      }
    }
  }
  void write_values(const TensorView<Element>& to, std::int64_t row, std::int64_t offset, const TokenRange& tokens,
                    std::int64_t head, const GradientChunk<Config>& chunk) const {
    for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
      convert_row(chunk.values_gradient + (token - tokens.begin) * State::stride, to.row(row, offset + token, head),
                  State::columns);
    }
  }

  /// Zeroes the gradients of positions without a token: left pads, positions past seq_lens or the prefix, and all of a
  /// skipped sequence.
  void zero_gradients(const Plan& plan, std::int64_t head) const {
    const auto zero = [](const TensorView<Element>& view, std::int64_t row, std::int64_t offset, std::int64_t h,
                         const TokenRange& kept, std::int64_t end) {
      for (std::int64_t token = 0; wanted(view) && token < end; ++token) {
        if (token < kept.begin || token >= kept.end) {
          std::fill_n(view.row(row, offset + token, h), view.dim, Element{});
        }
      }
    };
    const SequenceSpan& span = plan.span;
    const TokenRange tokens = plan.skipped ? TokenRange{} : plan.tokens;
    const TokenRange encoder = plan.skipped ? TokenRange{} : plan.encoder;
    for (std::int64_t h = head * query_group(); h < (head + 1) * query_group(); ++h) {
      zero(args_.query_gradient, span.batch_row, span.first_token, h, tokens, span.row_tokens);
    }
    zero(args_.key_gradient, span.batch_row, span.first_token, head, tokens, span.row_tokens);
    zero(args_.value_gradient, span.batch_row, span.first_token, head, tokens, span.row_tokens);
    zero(args_.key_encoder_gradient, span.encoder_row, span.encoder_first, head, encoder, span.encoder_tokens);
    zero(args_.value_encoder_gradient, span.encoder_row, span.encoder_first, head, encoder, span.encoder_tokens);
  }

  static std::int64_t scratch_elements() {
    Arena counting;
    Scratch scratch;
    scratch.take(counting);
    return static_cast<std::int64_t>(counting.bytes_needed() / sizeof(T));
  }

  [[nodiscard]] Scratch scratch_of(int worker) const {
    T* const base = scratch_base_ + worker * scratch_elements();
    Arena arena(Workspace{base, static_cast<std::size_t>(scratch_elements()) * sizeof(T)});
    Scratch scratch;
    scratch.take(arena);
    return scratch;
  }

  const Args& args_;
  PrefillArgs<Config> inputs_;
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
