// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/gradient_rows.hpp"
#include "jrt/detail/cpu/core/prefetch.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/cpu/linear/chunk.hpp"
#include "jrt/detail/cpu/linear/gradient_chunk.hpp"
#include "jrt/detail/plan/backward_plan.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/detail/shared/linear/output_products.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/tensor_view.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// The passes over a range of tokens of one head that the backward pass is made of: sums in either direction, gradients of
/// queries, of keys and values, and of the encoder region.
template <AttentionConfig Config>
class GradientPasses {
 public:
  using T = ConfigCompute<Config>;
  using Element = typename Config::Element;
  using Keys = KeyChunk<Config>;
  using Queries = QueryChunk<Config>;
  using State = typename Keys::State;
  using Plan = PrefillPlan;

  static constexpr bool full = Config::Mask::reads_future;

  struct Scratch {
    Keys keys;
    Queries queries;
    GradientChunk<Config> chunk;
    T* state = nullptr;  // [State::elements], for the caller

    void take(Arena& arena) {
      keys.take(arena);
      queries.take(arena);
      chunk.take(arena);
      state = arena.take<T>(State::elements);
    }
    void clear() const {
      keys.clear();
      queries.clear();
      chunk.clear();
    }
  };

  explicit GradientPasses(const BackwardArgs<Config>& args) : args_(args), inputs_(inputs_of(args)) {}

  /// Takes what the passes leave to each other.
  void take(Arena& arena) {
    denominator_gradients_ = denominator_gradients_of(args_, arena.take<T>(denominator_gradients_size(args_)));
  }

  [[nodiscard]] Plan plan_of(const SplitLimits& limits, std::int64_t b) const {
    return plan_backward(args_, inputs_, limits, b);
  }

  /// Whether the query pass has anything to do: gradients of queries, or dy·y for the key pass.
  [[nodiscard]] bool wants_forward() const {
    return wanted(args_.query_gradient) || (recomputes_output_products<Config> && wants_reverse());
  }
  /// Whether anything needs R.
  [[nodiscard]] bool wants_reverse() const {
    return wants_tokens() || wants_encoder() || !args_.initial_state_gradient.empty();
  }

  /// S += Σ φ(k) vᵀ over a range of the tokens, or of the encoder region.
  void add_tokens(const Plan& plan, const TokenRange& range, std::int64_t head, const State& state, Keys& keys) const {
    add_keys(token_source(inputs_, plan, head), with_key<Config>(plan, range), state, keys);
  }
  void add_encoder(const Plan& plan, const TokenRange& range, std::int64_t head, const State& state, Keys& keys) const {
    add_keys(encoder_source(inputs_, plan, head), range, state, keys);
  }

  /// R += Σ φ(q) gᵀ over a range and the query heads of a key/value head, in the order of the key pass.
  void add_queries(const SequenceSpan& span, const TokenRange& range, std::int64_t head, const State& reverse,
                   Queries& queries) const {
    for (std::int64_t chunk = ceil_div<std::int64_t>(range.size(), chunk_tokens) - 1; chunk >= 0; --chunk) {
      const TokenRange tokens = chunk_of(range, chunk);
      for (std::int64_t h = head * query_group(); h < (head + 1) * query_group(); ++h) {
        queries.read(args_, denominator_gradients_, span, tokens, chunk_of(range, chunk - 1), h);
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

  /// Gradients of queries. The state goes from that before the range to that after it, unless the mask reads all tokens.
  void query_pass(const Plan& plan, const TokenRange& range, std::int64_t head, const State& state,
                  Scratch& scratch) const {
    if (!wants_forward()) {
      return;
    }
    if constexpr (full) {
      query_chunks<false>(plan, range, head, state, scratch);
    } else {
      const TokenRange keyed = with_key<Config>(plan, range);
      if constexpr (key_delay<Config> != 0) {
        query_chunks<false>(plan, {range.begin, keyed.begin}, head, state, scratch);
      }
      query_chunks<true>(plan, keyed, head, state, scratch);
    }
  }

  /// Gradients of keys and values, last chunk first. R goes from that after the range to that before it, unless the mask
  /// reads all tokens.
  void key_pass(const Plan& plan, const TokenRange& range, std::int64_t head, const State& reverse,
                Scratch& scratch) const {
    const bool wants_keys = wanted(args_.key_gradient);
    const bool wants_values = wanted(args_.value_gradient);
    const KeySource<Element> source = token_source(inputs_, plan, head);
    const TokenRange keyed = with_key<Config>(plan, range);
    for (std::int64_t chunk = ceil_div<std::int64_t>(keyed.size(), chunk_tokens) - 1; chunk >= 0; --chunk) {
      const TokenRange tokens = chunk_of(keyed, chunk);
      const TokenRange next = chunk_of(keyed, chunk - 1);
      if (wants_tokens()) {
        scratch.keys.read(source, tokens, args_.feature_map, true);
        scratch.chunk.begin_keys(scratch.keys, reverse, wants_keys, wants_values, rows_of(source, next));
      }
      if constexpr (!full) {
        for (std::int64_t h = head * query_group(); h < (head + 1) * query_group(); ++h) {
          scratch.queries.read(args_, denominator_gradients_, plan.span, tokens, next, h);
          scratch.queries.expand(args_.feature_map, plan.span, tokens.begin);
          if (wants_tokens()) {
            scratch.chunk.add_queries(scratch.queries, scratch.keys, args_.feature_map, wants_keys, wants_values);
          }
          scratch.queries.add_to(reverse);
        }
      }
      if (wants_keys) {
        scratch.chunk.finish_keys(scratch.keys, args_.feature_map, plan.span, tokens.begin);
        write_columns(Rows{args_.key_gradient, source.row, source.first, head}, tokens, source.zero_keys,
                      scratch.chunk.inputs_gradient, Queries::column_stride);
      }
      if (wants_values) {
        write_rows(Rows{args_.value_gradient, source.row, source.first, head}, tokens, scratch.chunk.values_gradient,
                   State::stride);
      }
    }
    if constexpr (key_delay<Config> != 0) {
      add_queries(plan.span, {range.begin, keyed.begin}, head, reverse, scratch.queries);
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
    const KeySource<Element> source = encoder_source(inputs_, plan, head);
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk_tokens) {
      const TokenRange tokens = chunk_from(range, begin);
      scratch.keys.read(source, tokens, args_.feature_map, true);
      scratch.chunk.begin_keys(scratch.keys, reverse, wants_keys, wants_values,
                               rows_of(source, chunk_from(range, begin + chunk_tokens)));
      if (wants_keys) {
        scratch.chunk.finish_keys(scratch.keys, args_.feature_map, plan.span, tokens.begin);
        write_columns(Rows{args_.key_encoder_gradient, source.row, source.first, head}, tokens, source.zero_keys,
                      scratch.chunk.inputs_gradient, Queries::column_stride);
      }
      if (wants_values) {
        write_rows(Rows{args_.value_encoder_gradient, source.row, source.first, head}, tokens,
                   scratch.chunk.values_gradient, State::stride);
      }
    }
  }

  /// Zeroes the gradients of positions without a token: left pads, positions past seq_lens or the prefix, and all of a
  /// skipped sequence.
  void zero_gradients(const Plan& plan, std::int64_t head) const {
    const SequenceSpan& span = plan.span;
    const TokenRange tokens = plan.skipped ? TokenRange{} : plan.tokens;
    const TokenRange keys = plan.skipped ? TokenRange{} : keys_with_gradient<Config>(plan);
    const TokenRange encoder = plan.skipped ? TokenRange{} : plan.encoder;
    for (std::int64_t h = head * query_group(); h < (head + 1) * query_group(); ++h) {
      zero_rows(Rows{args_.query_gradient, span.batch_row, span.first_token, h}, tokens, span.row_tokens);
    }
    zero_rows(Rows{args_.key_gradient, span.batch_row, span.first_token, head}, keys, span.row_tokens);
    zero_rows(Rows{args_.value_gradient, span.batch_row, span.first_token, head}, keys, span.row_tokens);
    zero_rows(Rows{args_.key_encoder_gradient, span.encoder_row, span.encoder_first, head}, encoder, span.encoder_tokens);
    zero_rows(Rows{args_.value_encoder_gradient, span.encoder_row, span.encoder_first, head}, encoder, span.encoder_tokens);
  }

 private:
  using Rows = GradientRows<Element>;

  /// Query pass over tokens that all have keys, or of which none has, or that see them only through the state.
  template <bool with_keys>
  void query_chunks(const Plan& plan, const TokenRange& range, std::int64_t head, const State& state,
                    Scratch& scratch) const {
    const KeySource<Element> source = token_source(inputs_, plan, head);
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk_tokens) {
      const TokenRange tokens = chunk_from(range, begin);
      if constexpr (with_keys) {
        scratch.keys.read(source, tokens, args_.feature_map, false);
      }
      for (std::int64_t h = head * query_group(); h < (head + 1) * query_group(); ++h) {
        scratch.queries.read(args_, {}, plan.span, tokens, chunk_from(range, begin + chunk_tokens), h);
        scratch.chunk.of_queries(scratch.queries, state, with_keys ? &scratch.keys : nullptr, args_.feature_map, plan.span,
                                 tokens.begin);
        if (wanted(args_.query_gradient)) {
          write_columns(Rows{args_.query_gradient, plan.span.batch_row, plan.span.first_token, h}, tokens, 0,
                        scratch.chunk.inputs_gradient, Queries::column_stride);
        }
        if constexpr (recomputes_output_products<Config>) {
          for (int t = 0; t < scratch.queries.tokens; ++t) {
            *denominator_gradients_.row(plan.span.batch_row, plan.span.first_token + tokens.begin + t, h) =
                scratch.queries.denominator_gradient[t];
          }
        }
      }
      if constexpr (with_keys) {
        scratch.keys.add_to(state, source, chunk_from(range, begin + chunk_tokens));
      }
    }
  }

  static bool wanted(const TensorView<Element>& gradient) { return gradient.data != nullptr; }
  [[nodiscard]] bool wants_tokens() const { return wanted(args_.key_gradient) || wanted(args_.value_gradient); }
  [[nodiscard]] bool wants_encoder() const {
    return wanted(args_.key_encoder_gradient) || wanted(args_.value_encoder_gradient);
  }
  [[nodiscard]] std::int64_t query_group() const { return args_.query.heads / larger<std::int64_t>(args_.key.heads, 1); }

  /// The chunk of a range that begins at `begin`; empty after the range's end.
  static TokenRange chunk_from(const TokenRange& range, std::int64_t begin) {
    return {smaller(begin, range.end), smaller<std::int64_t>(begin + chunk_tokens, range.end)};
  }

  /// Chunk `chunk` of a range, counted from 0; empty for -1.
  static TokenRange chunk_of(const TokenRange& range, std::int64_t chunk) {
    return chunk < 0 ? TokenRange{range.begin, range.begin} : chunk_from(range, range.begin + chunk * chunk_tokens);
  }

  static LinePrefetch rows_of(const KeySource<Element>& source, const TokenRange& tokens) {
    const auto of_view = [&](const auto& view) {
      return RowPrefetch(view, source.row, source.first + tokens.begin, source.first + tokens.end, source.head);
    };
    return {of_view(source.key), of_view(source.value)};
  }

  void add_keys(const KeySource<Element>& source, const TokenRange& range, const State& state, Keys& keys) const {
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk_tokens) {
      keys.read(source, chunk_from(range, begin), args_.feature_map, false);
      keys.add_to(state, source, chunk_from(range, begin + chunk_tokens));
    }
  }

  const BackwardArgs<Config>& args_;
  PrefillArgs<Config> inputs_;
  TensorView<T> denominator_gradients_;
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
