// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/expand.hpp"
#include "jrt/detail/cpu/core/tile.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/cpu/linear/working_state.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/detail/shared/linear/step_operator.hpp"
#include "jrt/mixer/linear_attention.hpp"

/// Decoding on the CPU. One pass over a head's state, a few rows at a time:
///
///     for every block of rows r and columns c:                   S[r][c] stays in registers while
///       for every new token t:                                     S[r][c] += φ(k_t)[r] v_t[c]
///         for every query head g of the group:                     y_tg[c] += φ(q_tg)[r] S[r][c]
///
/// so that the state is read and written once, and T tokens give bitwise what T steps give.
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Tokens of one head, converted and expanded.
template <AttentionConfig Config>
struct StepTokens {
  using T = ConfigCompute<Config>;
  using Map = typename Config::FeatureMap;
  using State = WorkingState<StateFormatOf<Config>, T>;

  using Expansion = RowExpansion<Map, T>;

  static constexpr int feature_stride = State::normaliser_rows;

  std::int64_t keys = 0;                // tokens whose keys are added to the state
  std::int64_t keys_without_query = 0;  // leading ones of these without a query in this call
  std::int64_t group = 0;               // query heads
  std::int64_t tokens_without_key = 0;  // leading ones of `keys`, whose features and values are 0
  T* inputs = nullptr;                  // [keys + queries][Expansion::input_stride]
  T* key_features = nullptr;            // [keys][feature_stride], padding 0
  T* values = nullptr;                  // [keys][State::stride], padding 0
  T* query_features = nullptr;          // [keys - keys_without_query][group][feature_stride], padding 0
  T* outputs = nullptr;                 // [keys - keys_without_query][group][State::stride]
  T* normaliser = nullptr;              // [feature_stride]
  T* rows = nullptr;                    // [decode_rows][State::stride]
  T* denominators = nullptr;            // [keys - keys_without_query][group], null where outputs are not normalised

  void take(Arena& arena) {
    inputs = arena.take<T>((keys + queries()) * Expansion::input_stride);
    key_features = arena.take<T>(keys * feature_stride + Expansion::feature_overrun);
    values = arena.take<T>(keys * State::stride);
    query_features = arena.take<T>(queries() * feature_stride + Expansion::feature_overrun);
    outputs = arena.take<T>(queries() * State::stride);
    normaliser = arena.take<T>(feature_stride);
    rows = arena.take<T>(decode_rows * State::stride);
    if constexpr (has_denominators<Config>) {
      denominators = arena.take<T>(queries());
    }
  }

  [[nodiscard]] std::int64_t queries() const { return (keys - keys_without_query) * group; }

  void clear() const {
    std::memset(key_features, 0, sizeof(T) * static_cast<std::size_t>(keys * feature_stride));
    std::memset(values, 0, sizeof(T) * static_cast<std::size_t>(keys * State::stride));
    std::memset(query_features, 0, sizeof(T) * static_cast<std::size_t>(queries() * feature_stride));
    std::memset(rows, 0, sizeof(T) * decode_rows * State::stride);
  }

  template <class E>
  void read_key(std::int64_t t, const E* key, const E* value) const {
    Expansion::write_input(key, inputs + t * Expansion::input_stride);
    convert_row(value, values + t * State::stride, State::columns);
  }

  /// `t` counts from the first token that has queries.
  template <class E>
  void read_query(std::int64_t t, std::int64_t g, const E* query) const {
    Expansion::write_input(query, inputs + (keys + t * group + g) * Expansion::input_stride);
  }

  /// Features of all keys and queries read; `first_position` is that of key 0.
  void expand(const Map& map, std::int64_t first_position) const {
    for (std::int64_t t = tokens_without_key; t < keys; ++t) {
      Expansion::expand_key(map, inputs + t * Expansion::input_stride, key_features + t * feature_stride,
                            first_position + t);
    }
    for (std::int64_t query = 0; query < queries(); ++query) {
      Expansion::expand_query(map, inputs + (keys + query) * Expansion::input_stride,
                              query_features + query * feature_stride, first_position + keys_without_query + query / group);
    }
  }
};

/// One head's step: outputs into `tokens.outputs`, normalised; the new state into `destination` unless it is null.
template <AttentionConfig Config>
class HeadStep {
 public:
  using T = ConfigCompute<Config>;
  using Tokens = StepTokens<Config>;
  using State = typename Tokens::State;
  using Format = StateFormatOf<Config>;
  using Scalar = typename Format::Scalar;

  HeadStep(const Tokens& tokens, const Scalar* source, Scalar* destination)
      : tokens_(tokens), source_(source), destination_(destination) {}

  void run() const {
    std::memset(tokens_.outputs, 0, sizeof(T) * static_cast<std::size_t>(tokens_.queries() * State::stride));
    int row = 0;
    for (; row + decode_rows <= State::rows; row += decode_rows) {
      step_rows<decode_rows>(row);
    }
    for (; row < State::rows; ++row) {
      step_rows<1>(row);
    }
    normalise();
  }

 private:
  /// Whether rows of the slot can be updated in place: same type, whole packets.
  static constexpr bool direct = std::is_same_v<Scalar, T> && State::stride == State::columns;

  template <int Rows>
  void step_rows(int row) const {
    const std::ptrdiff_t offset = std::ptrdiff_t{row} * State::columns;
    if constexpr (direct) {
      step_columns<Rows>(row, source_ + offset, destination_ != nullptr ? destination_ + offset : tokens_.rows);
    } else {
      for (int r = 0; r < Rows; ++r) {
        convert_row(source_ + offset + std::ptrdiff_t{r} * State::columns, tokens_.rows + std::ptrdiff_t{r} * State::stride,
                    State::columns);
      }
      step_columns<Rows>(row, tokens_.rows, tokens_.rows);
      for (int r = 0; r < Rows && destination_ != nullptr; ++r) {
        convert_row(tokens_.rows + std::ptrdiff_t{r} * State::stride,
                    destination_ + offset + std::ptrdiff_t{r} * State::columns, State::columns);
      }
    }
  }

  /// Rows [row, row + Rows), read from `from` and written to `to`, a few packets of columns at a time.
  template <int Rows>
  void step_columns(int row, const T* from, T* to) const {
    for_blocks<decode_packets>(State::stride / lanes<T>, [&](auto packets, int first_packet) {
      step_block<Rows, packets>(row, first_packet * lanes<T>, from, to);
    });
  }

  template <int Rows, int Packets>
  void step_block(int row, int column, const T* from, T* to) const {
    Tile<T, Rows, Packets> state;
    state.read(from + column, State::stride);
    const T* key_feature = tokens_.key_features + row;
    const T* value = tokens_.values + column;
    const T* query_feature = tokens_.query_features + row;
    T* output = tokens_.outputs + column;
    const std::int64_t keys = tokens_.keys;
    const std::int64_t keys_without_query = tokens_.keys_without_query;
    const std::int64_t group = tokens_.group;
    for (std::int64_t t = 0; t < keys; ++t, key_feature += Tokens::feature_stride, value += State::stride) {
      state.add_product({key_feature, 1, 0}, {value, 0}, 1);
      if (t < keys_without_query) {
        continue;
      }
      for (std::int64_t g = 0; g < group; ++g, query_feature += Tokens::feature_stride, output += State::stride) {
        Packet<T> sums[Packets];
#pragma GCC unroll 8
        for (int p = 0; p < Packets; ++p) {
          sums[p] = load(output + p * lanes<T>);
        }
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          const Packet<T> feature = broadcast(query_feature[r]);
#pragma GCC unroll 8
          for (int p = 0; p < Packets; ++p) {
            sums[p] = multiply_add(feature, state.sums[r][p], sums[p]);
          }
        }
#pragma GCC unroll 8
        for (int p = 0; p < Packets; ++p) {
          store(output + p * lanes<T>, sums[p]);
        }
      }
    }
    state.write(to + column, State::stride);
  }

  void normalise() const {
    T* const z = tokens_.normaliser;
    std::memset(z, 0, sizeof(T) * Tokens::feature_stride);
    convert_row(source_ + Format::normaliser_offset, z, State::rows);
    for (std::int64_t t = 0; t < tokens_.keys; ++t) {
      const T* const feature = tokens_.key_features + t * Tokens::feature_stride;
      for (int r = 0; r < State::rows; ++r) {
        z[r] += feature[r];
      }
      for (std::int64_t g = 0; t >= tokens_.keys_without_query && g < tokens_.group; ++g) {
        const std::int64_t query = (t - tokens_.keys_without_query) * tokens_.group + g;
        T denominator = 0;
        if constexpr (has_denominators<Config>) {
          denominator = dot(tokens_.query_features + query * Tokens::feature_stride, z, Tokens::feature_stride);
          tokens_.denominators[query] = denominator;
        }
        const T factor = Config::Normaliser::factor(denominator);
        T* const output = tokens_.outputs + query * State::stride;
        for (int c = 0; c < State::columns; ++c) {
          output[c] *= factor;
        }
      }
    }
    if (destination_ != nullptr) {
      convert_row(z, destination_ + Format::normaliser_offset, State::rows);
    }
  }

  const Tokens& tokens_;
  const Scalar* source_;
  Scalar* destination_;
};

/// Memory for `workers` heads in flight.
template <AttentionConfig Config>
class StepScratch {
 public:
  using Tokens = StepTokens<Config>;
  using T = typename Tokens::T;

  StepScratch(std::int64_t keys, std::int64_t keys_without_query, std::int64_t group) {
    shape_.keys = keys;
    shape_.keys_without_query = keys_without_query;
    shape_.group = group;
    Arena counting;
    Tokens(shape_).take(counting);
    elements_ = static_cast<std::int64_t>(counting.bytes_needed() / sizeof(T));
  }

  void take(Arena& arena, int workers) { base_ = arena.take<T>(elements_ * workers); }

  [[nodiscard]] Tokens tokens_of(int worker) const {
    Arena arena(Workspace{base_ + elements_ * worker, static_cast<std::size_t>(elements_) * sizeof(T)});
    Tokens tokens = shape_;
    tokens.take(arena);
    tokens.clear();
    return tokens;
  }

 private:
  Tokens shape_;
  std::int64_t elements_ = 0;
  T* base_ = nullptr;
};

/// Loads the queries of one sequence and key/value head, of a step or a staged step.
template <AttentionConfig Config, class Args>
void read_queries(const Args& args, const StepTokens<Config>& tokens, std::int64_t b, std::int64_t head) {
  for (std::int64_t t = 0; t < args.query.tokens; ++t) {
    for (std::int64_t g = 0; g < tokens.group; ++g) {
      tokens.read_query(t, g, args.query.row(b, t, head * tokens.group + g));
    }
  }
}

template <AttentionConfig Config, class Args>
void write_outputs(const Args& args, const StepTokens<Config>& tokens, std::int64_t b, std::int64_t head) {
  using State = typename StepTokens<Config>::State;
  for (std::int64_t t = 0; t < args.query.tokens; ++t) {
    for (std::int64_t g = 0; g < tokens.group; ++g) {
      convert_row(tokens.outputs + (t * tokens.group + g) * State::stride, args.output.row(b, t, head * tokens.group + g),
                  State::columns);
    }
  }
}

/// Writes the denominators of a step whose arguments have a view for them.
template <AttentionConfig Config, class T>
void write_denominators(const TensorView<T>& denominators, const StepTokens<Config>& tokens, std::int64_t b,
                        std::int64_t head) {
  if constexpr (has_denominators<Config>) {
    for (std::int64_t query = 0; query < tokens.queries(); ++query) {
      store_denominator(denominators, b, query / tokens.group, head * tokens.group + query % tokens.group,
                        tokens.denominators[query]);
    }
  }
}

template <AttentionConfig Config, class Args>
void zero_step_outputs(const Args& args, std::int64_t group, std::int64_t b, std::int64_t head) {
  for (std::int64_t t = 0; t < args.output.tokens; ++t) {
    for (std::int64_t h = head * group; h < (head + 1) * group; ++h) {
      auto* const row = args.output.row(b, t, h);
      std::fill(row, row + Config::value_dim, typename Config::Element{});
      if constexpr (requires { args.denominators; }) {
        store_denominator(args.denominators, b, t, h, ConfigCompute<Config>(0));
      }
    }
  }
}

/// Position, counted from 1, of the first token that is not in the committed state.
inline std::int64_t first_position(const std::int32_t* first_positions, std::int64_t b) {
  return 1 + (first_positions == nullptr ? 0 : first_positions[b]);
}

template <AttentionConfig Config>
void decode_head(const DecodeArgs<Config>& args, const StepTokens<StepOnly<Config>>& tokens, std::int64_t b,
                 std::int64_t head) {
  const auto& destination = destination_of(args);
  if (args.source.slot(b) == skip_slot || destination.slot(b) == skip_slot) {
    zero_step_outputs<Config>(args, tokens.group, b, head);
    return;
  }
  for (std::int64_t t = 0; t < args.key.tokens; ++t) {
    tokens.read_key(t, args.key.row(b, t, head), args.value.row(b, t, head));
  }
  read_queries<StepOnly<Config>>(args, tokens, b, head);
  tokens.expand(args.feature_map, first_position(args.first_positions, b));
  HeadStep<StepOnly<Config>>(tokens, args.source.pool.head(args.source.slot(b), head),
                             destination.pool.head(destination.slot(b), head))
      .run();
  write_outputs<StepOnly<Config>>(args, tokens, b, head);
  write_denominators<StepOnly<Config>>(args.denominators, tokens, b, head);
}

template <AttentionConfig Config>
void staged_head(const StagedStepArgs<Config>& args, const StepTokens<StepOnly<Config>>& tokens, std::int64_t b,
                 std::int64_t head) {
  constexpr int d = Config::FeatureMap::input_dim;
  if (args.state.slot(b) == skip_slot) {
    zero_step_outputs<Config>(args, tokens.group, b, head);
    return;
  }
  for (std::int64_t t = 0; t < tokens.keys; ++t) {
    auto* const row = args.staging.row(b, t, head);
    if (t >= args.already_staged) {
      const std::int64_t fresh = t - args.already_staged;
      std::memcpy(row, args.key.row(b, fresh, head), sizeof *row * d);
      std::memcpy(row + d, args.value.row(b, fresh, head), sizeof *row * Config::value_dim);
    }
    tokens.read_key(t, row, row + d);
  }
  read_queries<StepOnly<Config>>(args, tokens, b, head);
  tokens.expand(args.feature_map, first_position(args.first_positions, b));
  HeadStep<StepOnly<Config>>(tokens, args.state.pool.head(args.state.slot(b), head), nullptr).run();
  write_outputs<StepOnly<Config>>(args, tokens, b, head);
}

template <AttentionConfig Config>
void commit_head(const CommitArgs<Config>& args, StepTokens<StepOnly<Config>> tokens, std::int64_t b, std::int64_t head) {
  const auto& destination = destination_of(args);
  if (args.source.slot(b) == skip_slot || destination.slot(b) == skip_slot) {
    return;
  }
  tokens.keys = args.accepted_tokens[b];
  tokens.keys_without_query = tokens.keys;
  for (std::int64_t t = 0; t < tokens.keys; ++t) {
    const auto* const row = args.staging.row(b, t, head);
    tokens.read_key(t, row, row + Config::FeatureMap::input_dim);
  }
  tokens.expand(args.feature_map, first_position(args.first_positions, b));
  HeadStep<StepOnly<Config>>(tokens, args.source.pool.head(args.source.slot(b), head),
                             destination.pool.head(destination.slot(b), head))
      .run();
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
