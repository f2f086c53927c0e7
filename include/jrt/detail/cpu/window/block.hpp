// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/expand.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/detail/cpu/core/tile.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/shared/window/keys.hpp"
#include "jrt/detail/shared/window/online_softmax.hpp"
#include "jrt/workspace.hpp"

/// Window attention of a few queries, on the CPU. A worker keeps the keys and values that its queries may see in a ring of
/// panels, so that each is converted, rotated and transposed once:
///
///     panel:   keys d x 64 (transposed), values 64 x dv                     tokens 64 p … 64 p + 63
///     scores:  6 queries x the panels' keys in the window                   q · Kᵀ, a register tile at a time
///     softmax: row by row; masked weights are exactly 0
///     output:  6 queries x dv                                               P · V, over the keys in the window only
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// eᵃ of a packet.
template <class P>
P exponential(const P& a) {
  return Eigen::internal::pexp(a);
}

/// x rotated by the rotation at a position, in place.
template <class Rotary, class T>
void rotate(const Rotary& rotary, std::int64_t position, T* x) {
  if constexpr (Rotary::rotates) {
    for (int i = 0; i < Rotary::half_dim; ++i) {
      const Rotation<T> rotation = rotary.template rotation<T>(position, i);
      const T first = x[i];
      const T second = x[i + Rotary::half_dim];
      x[i] = first * rotation.cosine - second * rotation.sine;
      x[i + Rotary::half_dim] = first * rotation.sine + second * rotation.cosine;
    }
  }
}

template <WindowConfig Config>
class WindowBlock {
 public:
  using Element = typename Config::Element;
  using T = ComputeType<Element>;
  using Keys = WindowKeys<Config>;

  static constexpr std::int64_t left = Config::left_window;
  static constexpr std::int64_t panels = ceil_div(left, panel_keys) + 1;  // seen by the queries of one panel
  static constexpr int head_dim = Config::head_dim;
  static constexpr int value_dim = Config::value_dim;
  static constexpr int value_stride = round_up(value_dim, lanes<T>);
  static constexpr std::int64_t score_stride = panels * panel_keys;

  static_assert(panel_keys % lanes<T> == 0);

  void take(Arena& arena) {
    keys_ = arena.take<T>(panels * panel_keys * head_dim);
    values_ = arena.take<T>(panels * panel_keys * value_stride);
    scores_ = arena.take<T>(tile_rows * score_stride);
    queries_ = arena.take<T>(tile_rows * head_dim);
    outputs_ = arena.take<T>(tile_rows * value_stride);
    row_ = arena.take<T>(head_dim);
    log_sums_ = arena.take<T>(tile_rows);
    if constexpr (has_softmax_carry_in<Config>) {
      denominators_ = arena.take<T>(tile_rows);
    }
  }

  /// Discards all panels, before another sequence or head.
  void restart() { loaded_ = std::numeric_limits<std::int64_t>::min(); }

  /// Loads the keys [range.begin, range.end) that are not in panels yet. Ranges only move forward, by whole panels.
  void load(const Keys& keys, const TokenRange& range, const typename Config::Rotary& rotary) {
    for (std::int64_t token = larger(loaded_, range.begin); token < range.end; ++token) {
      load_token(keys, token, rotary);
    }
    loaded_ = range.end;
  }

  /// Sets query `row` of the next `compute`, times `scale`.
  void set_query(int row, const Element* query, std::int64_t position, T scale, const typename Config::Rotary& rotary) {
    T* const to = queries_ + std::ptrdiff_t{row} * head_dim;
    convert_row(query, to, head_dim);
    rotate(rotary, position, to);
    for (int c = 0; c < head_dim; ++c) {
      to[c] *= scale;
    }
  }

  /// Sets the softmax carry-in of query `row` of the next `compute`: a normalised sum and its denominator.
  void set_before(int row, const Element* output, T denominator) {
    T* const to = outputs_ + std::ptrdiff_t{row} * value_stride;
    if (denominator == 0) {
      std::fill(to, to + value_stride, T(0));
    } else {
      convert_row(output, to, value_dim);
      std::fill(to + value_dim, to + value_stride, T(0));
    }
    denominators_[row] = denominator;
  }

  /// Outputs of `rows` queries from token `first` on; all keys that they see must be loaded.
  void compute(std::int64_t first, int rows, std::int64_t lowest) {
    const TokenRange range = keys_in_window(first, rows, left, lowest);
    const std::int64_t base = floor_to(range.begin, lanes<T>);
    const auto columns = round_up<std::int64_t>(range.end - base, lanes<T>);
    for_panels({base, base + columns}, [&](std::int64_t begin, std::int64_t end) {
      const Right<T> panel{keys_ + slot_of(begin) * panel_keys * head_dim + within(begin), panel_keys};
      sum_of_products(scores_ + (begin - base), score_stride, rows, static_cast<int>(end - begin),
                      Left<T>{queries_, head_dim, 1}, panel, head_dim, Left<T>{queries_, head_dim, 1}, panel, 0);
    });
    T inverse[tile_rows];
    for (int r = 0; r < rows; ++r) {
      const TokenRange seen = keys_in_window(first + r, 1, left, lowest);
      T* const scores = scores_ + r * score_stride;
      T* const output = outputs_ + std::ptrdiff_t{r} * value_stride;
      const T largest = largest_of(scores, seen.begin - base, seen.end - base, columns);
      OnlineSoftmax<T> softmax{largest};
      if constexpr (has_softmax_carry_in<Config>) {
        softmax = {T(0), denominators_[r] + static_cast<T>(Config::epsilon)};
        const T factor = denominators_[r] * softmax.absorb(larger(T(0), largest));
        for (int c = 0; c < value_stride; ++c) {
          output[c] *= factor;
        }
      } else {
        std::fill(output, output + value_stride, T(0));
      }
      softmax.denominator += to_weights(scores, seen.begin - base, seen.end - base, columns, softmax.maximum);
      inverse[r] = softmax.finish();
      log_sums_[r] = softmax.log_sum();
    }
    for_panels(range, [&](std::int64_t begin, std::int64_t end) {
      add_product(outputs_, value_stride, rows, value_stride, Left<T>{scores_ + (begin - base), score_stride, 1},
                  Right<T>{values_ + (slot_of(begin) * panel_keys + within(begin)) * value_stride, value_stride},
                  static_cast<std::ptrdiff_t>(end - begin));
    });
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < value_dim; ++c) {
        outputs_[std::ptrdiff_t{r} * value_stride + c] *= inverse[r];
      }
    }
  }

  void write_output(int row, Element* output) const {
    convert_row(outputs_ + std::ptrdiff_t{row} * value_stride, output, value_dim);
  }

  /// log Σ e^s of the scores of query `row`.
  [[nodiscard]] T log_sum(int row) const { return log_sums_[row]; }

  /// A key as the cache holds it: rotated, and rounded to its type.
  static void rotated_key(const Keys& keys, std::int64_t token, const typename Config::Rotary& rotary, T* to) {
    convert_row(keys.key(token), to, head_dim);
    if (Config::Rotary::rotates && !Keys::is_rotated(token)) {
      rotate(rotary, keys.position(token), to);
      for (int c = 0; c < head_dim; ++c) {
        to[c] = convert<T>(convert<Element>(to[c]));
      }
    }
  }

 private:
  static constexpr std::int64_t floor_to(std::int64_t value, std::int64_t multiple) {
    const std::int64_t remainder = value % multiple;
    return value - (remainder < 0 ? remainder + multiple : remainder);
  }
  /// Index of a token's panel in the ring, and of the token in the panel.
  static constexpr std::int64_t slot_of(std::int64_t token) {
    const std::int64_t remainder = floor_to(token, panel_keys) / panel_keys % panels;
    return remainder < 0 ? remainder + panels : remainder;
  }
  static constexpr std::int64_t within(std::int64_t token) { return token - floor_to(token, panel_keys); }

  /// Calls `function(begin, end)` for the part of the range in each panel.
  template <class Function>
  static void for_panels(const TokenRange& range, const Function& function) {
    for (std::int64_t begin = range.begin; begin < range.end;) {
      const std::int64_t end = smaller(floor_to(begin, panel_keys) + panel_keys, range.end);
      function(begin, end);
      begin = end;
    }
  }

  void load_token(const Keys& keys, std::int64_t token, const typename Config::Rotary& rotary) {
    rotated_key(keys, token, rotary, row_);
    T* const column = keys_ + slot_of(token) * panel_keys * head_dim + within(token);
    for (int c = 0; c < head_dim; ++c) {
      column[c * panel_keys] = row_[c];
    }
    T* const value = values_ + (slot_of(token) * panel_keys + within(token)) * value_stride;
    convert_row(keys.value(token), value, value_dim);
    std::fill(value + value_dim, value + value_stride, T(0));
  }

  /// The largest of a row's scores [begin, end); all others become −∞.
  static T largest_of(T* scores, std::int64_t begin, std::int64_t end, std::int64_t columns) {
    std::fill(scores, scores + begin, -std::numeric_limits<T>::infinity());
    std::fill(scores + end, scores + columns, -std::numeric_limits<T>::infinity());
    Packet<T> most = cpu::load(scores);
    for (std::int64_t c = lanes<T>; c < columns; c += lanes<T>) {
      most = Eigen::internal::pmax(most, cpu::load(scores + c));
    }
    return Eigen::internal::predux_max(most);
  }
  /// Scores [begin, end) of a row become e^(score − maximum), all others 0; returns their sum.
  static T to_weights(T* scores, std::int64_t begin, std::int64_t end, std::int64_t columns, T maximum) {
    const Packet<T> shift = broadcast(maximum);
    for (std::int64_t c = 0; c < columns; c += lanes<T>) {
      store(scores + c, exponential(Eigen::internal::psub(cpu::load(scores + c), shift)));
    }
    std::fill(scores, scores + begin, T(0));
    std::fill(scores + end, scores + columns, T(0));
    return cpu::sum(scores, columns);
  }

  T* keys_ = nullptr;          // [panels][head_dim][panel_keys]
  T* values_ = nullptr;        // [panels][panel_keys][value_stride]
  T* scores_ = nullptr;        // [tile_rows][score_stride]
  T* queries_ = nullptr;       // [tile_rows][head_dim]
  T* outputs_ = nullptr;       // [tile_rows][value_stride]
  T* row_ = nullptr;           // [head_dim]
  T* log_sums_ = nullptr;      // [tile_rows]
  T* denominators_ = nullptr;  // [tile_rows], with a softmax carry-in
  std::int64_t loaded_ = 0;
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
