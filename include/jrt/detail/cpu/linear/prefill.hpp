// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/cpu/linear/chunk.hpp"
#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/executor.hpp"
#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Prefill of a batch. One head of an unsplit sequence, or a few, is a task: initial state, encoder sum, then chunk by
/// chunk outputs and update. A split sequence takes three rounds of tasks:
///
///     segment sums      one task per segment and head: the segment's own Σ φ(k)vᵀ. Encoder segments first, then token
///                       segments (the last of those only if the mask reads all tokens).
///     state scan        one task per head: initial state + encoder segments + the token segments before each; every token
///                       segment's sum is replaced by the state that it starts from.
///     segment outputs   one task per segment and head or a few heads: outputs from that state.
///
/// Every sum has a fixed order, so results do not depend on which worker takes which task.
template <AttentionConfig Config>
class Prefill {
 public:
  using T = ConfigCompute<Config>;
  using Args = PrefillInputOf<Config>;
  using Element = typename Config::Element;
  using Chunk = KeyChunk<Config>;
  using State = typename Chunk::State;

  static constexpr bool full = Config::Mask::reads_future;

  Prefill(const Args& args, std::int64_t sequences, std::int64_t heads, int workers)
      : args_(args), sequences_(sequences), heads_(heads), workers_(workers) {
    // What a hybrid mixer's window continues from stays where it is.
    if (!is_linear_part<Config> && passes_caches(args.output) && has_rows_of_packets<T>(args.output)) {
      stores_ = Stores::past_caches;
    }
  }

  /// Takes all memory from the arena; a counting arena gives the size.
  void take(Arena& arena) {
    first_items_ = arena.take<std::int64_t>(sequences_ + 1);
    std::int64_t total = 0;
    max_token_segments_ = 1;
    for (std::int64_t b = 0; b < sequences_; ++b) {
      if (first_items_ != nullptr) {
        first_items_[b] = total;
      }
      const Plan plan = plan_of(b);
      total += plan.items();
      max_token_segments_ = larger(max_token_segments_, plan.token_segments);
    }
    if (first_items_ != nullptr) {
      first_items_[sequences_] = total;
    }
    total_items_ = total;
    partial_states_ = arena.take<T>(total * heads_ * State::elements);
    scratch_base_ = arena.take<T>(workers_ * scratch_elements());
  }

  template <Executor E>
  void run(E&& executor) {
    for (int w = 0; w < workers_; ++w) {
      Scratch scratch = scratch_of(w);
      scratch.chunk.clear();
      scratch.queries.clear();
    }
    if (total_items_ > 0) {
      executor.run(total_items_ * heads_,
                   [this](std::int64_t task, int worker) { sum(task / heads_, task % heads_, scratch_of(worker)); });
      executor.run(sequences_ * heads_, [this](std::int64_t task, int) { scan(task / heads_, task % heads_); });
    }
    const std::int64_t together = heads_together();
    const std::int64_t head_groups = heads_ / together;
    executor.run(sequences_ * max_token_segments_ * head_groups,
                 [this, together, head_groups](std::int64_t task, int worker) {
                   const std::int64_t item = task / head_groups;
                   const std::int64_t first = task % head_groups * together;
                   outputs_of_segment(item / max_token_segments_, item % max_token_segments_, {first, first + together},
                                      scratch_of(worker));
                 });
  }

 private:
  using Plan = PrefillPlan;

  struct Scratch {
    Chunk chunk;
    QueryBlock<Config> queries;
    T* states = nullptr;  // [max_heads_together][State::elements]
  };

  /// Key/value heads [begin, end) that one task works on in turn, chunk by chunk.
  struct HeadRange {
    std::int64_t begin = 0;
    std::int64_t end = 0;
  };

  [[nodiscard]] std::int64_t heads_together() const {
    const auto& value = args_.value.tokens > 0 ? args_.value : args_.value_encoder;
    if (value.head_stride >= value.token_stride) {
      return 1;
    }
    for (std::int64_t together = max_heads_together; together > 1; together /= 2) {
      // Two tasks for every worker; larger groups are worth more than a finer division (measured).
      const bool enough = workers_ == 1 || sequences_ * max_token_segments_ * heads_ >= 2 * workers_ * together;
      if (heads_ % together == 0 && enough) {
        return together;
      }
    }
    return 1;
  }

  [[nodiscard]] Plan plan_of(std::int64_t b) const {
    return plan_prefill(args_, {sequences_ * heads_, workers_, chunk_tokens}, b);
  }

  [[nodiscard]] auto tokens_of(const Plan& plan, std::int64_t head) const { return token_source(args_, plan, head); }
  [[nodiscard]] KeySource<Element> encoder_of(const Plan& plan, std::int64_t head) const {
    return encoder_source(args_, plan, head);
  }

  void sum(std::int64_t item, std::int64_t head, Scratch scratch) {
    const std::int64_t b = std::upper_bound(first_items_, first_items_ + sequences_ + 1, item) - first_items_ - 1;
    const Plan plan = plan_of(b);
    const std::int64_t index = item - first_items_[b];
    const State state{partial_state(item, head)};
    const HeadRange heads{head, head + 1};
    const auto state_of = [&](std::int64_t) { return state; };
    if (index < plan.encoder_segments) {
      state.clear();
      const TokenRange range = segment_of(plan.encoder, plan.encoder_segments, index, chunk_tokens);
      accumulate([&](std::int64_t h) { return encoder_of(plan, h); }, range, heads, state_of, scratch.chunk);
    } else if (full || index + 1 < plan.items()) {
      state.clear();
      const TokenRange range = segment_of(plan.tokens, plan.token_segments, index - plan.encoder_segments, chunk_tokens);
      accumulate([&](std::int64_t h) { return tokens_of(plan, h); }, range, heads, state_of, scratch.chunk);
    }
  }

  void scan(std::int64_t b, std::int64_t head) {
    const Plan plan = plan_of(b);
    if (!plan.split()) {
      return;
    }
    // The last item holds the running total: nothing after it needs that item's own sum.
    const std::int64_t first = first_items_[b];
    const std::int64_t last = first_items_[b + 1] - 1;
    if constexpr (full) {
      const State total{partial_state(last, head)};
      add_initial_state(b, head, total);
      for (std::int64_t item = first; item < last; ++item) {
        total.add(State{partial_state(item, head)});
      }
      write_final_state(b, head, total);
    } else {
      const State running{partial_state(last, head)};
      running.clear();
      add_initial_state(b, head, running);
      for (std::int64_t item = first; item < first + plan.encoder_segments; ++item) {
        running.add(State{partial_state(item, head)});
      }
      for (std::int64_t item = first + plan.encoder_segments; item < last; ++item) {
        // running' = running + own sum, while the item takes the old running: a swap and an addition, element by element.
        const State start{partial_state(item, head)};
        for (std::int64_t i = 0; i < State::elements; ++i) {
          const T own_sum = start.data[i];
          start.data[i] = running.data[i];
          running.data[i] += own_sum;
        }
      }
    }
  }

  void outputs_of_segment(std::int64_t b, std::int64_t segment, const HeadRange& heads, Scratch scratch) {
    const Plan plan = plan_of(b);
    if (segment >= plan.token_segments) {
      return;
    }
    if (segment == 0) {
      zero_outputs(plan, heads);
    }
    if (plan.skipped) {
      return;
    }
    const TokenRange range = segment_of(plan.tokens, plan.token_segments, segment, chunk_tokens);
    const auto tokens = [&](std::int64_t h) { return tokens_of(plan, h); };
    const auto for_heads = [&](const auto& function) {
      for (std::int64_t h = heads.begin; h < heads.end; ++h) {
        function(h);
      }
    };
    if (plan.split()) {
      const std::int64_t item = first_items_[b] + plan.encoder_segments + (full ? plan.token_segments - 1 : segment);
      const auto state_of = [&](std::int64_t h) { return State{partial_state(item, h)}; };
      outputs(tokens, range, heads, state_of, scratch);
      if (!full && segment + 1 == plan.token_segments) {
        for_heads([&](std::int64_t h) { write_final_state(b, h, state_of(h)); });
      }
      return;
    }
    const auto state_of = [&](std::int64_t h) { return State{scratch.states + (h - heads.begin) * State::elements}; };
    for_heads([&](std::int64_t h) {
      state_of(h).clear();
      add_initial_state(b, h, state_of(h));
    });
    accumulate([&](std::int64_t h) { return encoder_of(plan, h); }, plan.encoder, heads, state_of, scratch.chunk);
    if constexpr (full) {
      accumulate(tokens, range, heads, state_of, scratch.chunk);
    }
    outputs(tokens, range, heads, state_of, scratch);
    for_heads([&](std::int64_t h) { write_final_state(b, h, state_of(h)); });
  }

  /// The chunk of a range that begins at `begin`; empty after the range's end.
  static TokenRange chunk_from(const TokenRange& range, std::int64_t begin) {
    return {smaller(begin, range.end), smaller<std::int64_t>(begin + chunk_tokens, range.end)};
  }

  /// Adds a range of tokens to the states. `source_of(head)` is the source of keys and values.
  template <class SourceOf, class StateOf>
  void accumulate(const SourceOf& source_of, const TokenRange& range, const HeadRange& heads, const StateOf& state_of,
                  Chunk& chunk) const {
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk_tokens) {
      for (std::int64_t h = heads.begin; h < heads.end; ++h) {
        const auto source = source_of(h);
        chunk.read(source, chunk_from(range, begin), args_.feature_map, false);
        chunk.add_to(state_of(h), source, chunk_from(range, begin + chunk_tokens));
      }
    }
  }

  /// Outputs of a range of tokens; unless the mask reads all tokens, each chunk is then added to the states.
  template <class SourceOf, class StateOf>
  void outputs(const SourceOf& source_of, const TokenRange& range, const HeadRange& heads, const StateOf& state_of,
               Scratch& scratch) const {
    const std::int64_t group = query_group();
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk_tokens) {
      const TokenRange tokens = chunk_from(range, begin);
      const TokenRange next = chunk_from(range, begin + chunk_tokens);
      for (std::int64_t h = heads.begin; h < heads.end; ++h) {
        const auto source = source_of(h);
        const State state = state_of(h);
        if constexpr (!full) {
          scratch.chunk.read(source, tokens, args_.feature_map, true);
        }
        for (std::int64_t g = 0; g < group; ++g) {
          query_head(source.span, tokens, next, h * group + g, state, scratch);
        }
        if constexpr (!full) {
          scratch.chunk.add_to(state, source, next);
        }
      }
    }
    if (stores_ == Stores::past_caches) {
      finish_stores();
    }
  }

  /// Outputs of one query head for a chunk of tokens. Prefetches queries and outputs of the next chunk meanwhile.
  void query_head(const SequenceSpan& span, const TokenRange& tokens, const TokenRange& next, std::int64_t head,
                  const State& state, const Scratch& scratch) const {
    const auto query = [&](std::int64_t t) { return args_.query.row(span.batch_row, span.first_token + t, head); };
    const auto output = [&](std::int64_t t) { return args_.output.row(span.batch_row, span.first_token + t, head); };
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
      scratch.queries.read(static_cast<int>(t - tokens.begin), query(t));
    }
    const auto rows_of = [&](const auto& view) {
      return RowPrefetch(view, span.batch_row, span.first_token + next.begin, span.first_token + next.end, head);
    };
    LinePrefetch next_rows(rows_of(args_.query), stores_ == Stores::past_caches ? RowPrefetch() : rows_of(args_.output));
    for (std::int64_t token = tokens.begin; token < tokens.end; token += tile_rows) {
      const int first = static_cast<int>(token - tokens.begin);
      const int rows = static_cast<int>(smaller<std::int64_t>(tile_rows, tokens.end - token));
      scratch.queries.compute(rows, state, full ? nullptr : &scratch.chunk, first, args_.feature_map, span.position(token),
                              next_rows);
      for (int r = 0; r < rows; ++r) {
        scratch.queries.write(r, output(token + r), stores_);
        if constexpr (has_denominators<Config>) {
          store_denominator(args_.denominators, span.batch_row, span.first_token + token + r, head,
                            scratch.queries.denominators[r]);
        }
      }
    }
  }

  /// Zeroes the outputs of positions without a token: left pads, positions past seq_lens, and all of a skipped sequence.
  void zero_outputs(const Plan& plan, const HeadRange& heads) const {
    if constexpr (is_linear_part<Config>) {
      return;  // the window pass zeroes these, after reading its carry-in
    }
    const std::int64_t group = query_group();
    const auto zero = [&](std::int64_t first, std::int64_t end) {
      for (std::int64_t token = first; token < end; ++token) {
        for (std::int64_t h = heads.begin * group; h < heads.end * group; ++h) {
          Element* const row = args_.output.row(plan.span.batch_row, plan.span.first_token + token, h);
          std::fill(row, row + State::columns, Element{});
          store_denominator(args_.denominators, plan.span.batch_row, plan.span.first_token + token, h, T(0));
        }
      }
    };
    zero(0, plan.skipped ? plan.span.row_tokens : plan.tokens.begin);
    zero(plan.skipped ? plan.span.row_tokens : plan.tokens.end, plan.span.row_tokens);
  }

  [[nodiscard]] std::int64_t query_group() const { return args_.query.heads / larger<std::int64_t>(args_.key.heads, 1); }

  void add_initial_state(std::int64_t b, std::int64_t head, const State& state) const {
    if (reads_initial_state(args_.initial_state, args_.has_initial_state, b)) {
      state.add_slot(args_.initial_state.pool.head(args_.initial_state.slot(b), head));
    }
  }

  void write_final_state(std::int64_t b, std::int64_t head, const State& state) const {
    if (!args_.final_state.empty()) {
      state.write(args_.final_state.pool.head(args_.final_state.slot(b), head));
    }
  }

  [[nodiscard]] T* partial_state(std::int64_t item, std::int64_t head) const {
    return partial_states_ + (item * heads_ + head) * State::elements;
  }

  static Scratch take_scratch(Arena& arena) {
    Scratch scratch;
    scratch.chunk.take(arena);
    scratch.queries.take(arena);
    scratch.states = arena.take<T>(max_heads_together * State::elements);
    return scratch;
  }

  static std::int64_t scratch_elements() {
    Arena counting;
    take_scratch(counting);
    return static_cast<std::int64_t>(counting.bytes_needed() / sizeof(T));
  }

  [[nodiscard]] Scratch scratch_of(int worker) const {
    T* const base = scratch_base_ + worker * scratch_elements();
    Arena arena(Workspace{base, static_cast<std::size_t>(scratch_elements()) * sizeof(T)});
    return take_scratch(arena);
  }

  const Args& args_;
  std::int64_t sequences_;
  std::int64_t heads_;
  int workers_;
  Stores stores_ = Stores::in_caches;
  std::int64_t* first_items_ = nullptr;  // [sequences + 1] first item of each split sequence
  std::int64_t total_items_ = 0;
  std::int64_t max_token_segments_ = 1;
  T* partial_states_ = nullptr;  // [total_segments][heads][State::elements]
  T* scratch_base_ = nullptr;    // [workers][scratch_elements]
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
