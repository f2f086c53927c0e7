// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/rows.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/detail/cpu/core/tile.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/cpu/window/block.hpp"
#include "jrt/detail/plan/window_range.hpp"
#include "jrt/detail/shared/window/backward_call.hpp"
#include "jrt/workspace.hpp"

/// Gradients of a run of tokens of one key/value head, a panel of 64 queries at a time. A worker keeps keys, values and
/// their gradients in a ring of panels, the window of these queries; a panel's gradients are written when the window leaves
/// it:
///
///     P, dS   64 queries x the ring's keys        S = Q · Kᵀ, dP = dY · Vᵀ, both in strips of 6 queries
///     dQ      strips of 6 queries                 dS · K, over the keys that they see
///     dK, dV  strips of 6 keys                    dSᵀ · Q, Pᵀ · dY, over the queries that see them
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// The gradient of a vector from that of the vector rotated: the rotation transposed, in place.
template <class Rotary, class T>
void rotate_back(const Rotary& rotary, std::int64_t position, T* x) {
  if constexpr (Rotary::rotates) {
    for (int i = 0; i < Rotary::half_dim; ++i) {
      const Rotation<T> rotation = rotary.template rotation<T>(position, i);
      const T first = x[i];
      const T second = x[i + Rotary::half_dim];
      x[i] = first * rotation.cosine + second * rotation.sine;
      x[i + Rotary::half_dim] = second * rotation.cosine - first * rotation.sine;
    }
  }
}

template <WindowConfig Config>
class WindowBackwardBlock {
 public:
  using Call = WindowBackwardCall<Config>;
  using Element = typename Config::Element;
  using T = ComputeType<Element>;

  static constexpr std::int64_t left = Config::left_window;
  static constexpr std::int64_t panels = ceil_div(left, panel_keys) + 1;  // seen by the queries of one panel
  static constexpr int head_dim = Config::head_dim;
  static constexpr int value_dim = Config::value_dim;
  static constexpr int head_stride = round_up(head_dim, lanes<T>);
  static constexpr int value_stride = round_up(value_dim, lanes<T>);
  static constexpr std::int64_t ring_keys = panels * panel_keys;

  static_assert(panel_keys % lanes<T> == 0);

  explicit WindowBackwardBlock(const Call& call) : call_(call) {}

  void take(Arena& arena) {
    key_columns_ = arena.take<T>(ring_keys * head_dim);
    value_columns_ = arena.take<T>(ring_keys * value_dim);
    key_rows_ = arena.take<T>(ring_keys * head_stride);
    key_gradients_ = arena.take<T>(ring_keys * head_stride);
    value_gradients_ = arena.take<T>(ring_keys * value_stride);
    queries_ = arena.take<T>(panel_keys * head_stride);
    output_gradients_ = arena.take<T>(panel_keys * value_stride);
    weights_ = arena.take<T>(panel_keys * ring_keys);
    score_gradients_ = arena.take<T>(panel_keys * ring_keys);
    query_gradients_ = arena.take<T>(tile_rows * head_stride);
    row_ = arena.take<T>(larger(head_stride, value_stride));
  }

  /// Starts a run: the gradients of the tokens `own` of one key/value head, whose first begins a panel.
  void begin(const SequenceSpan& span, std::int64_t head, const TokenRange& own) {
    span_ = span;
    head_ = head;
    own_ = own;
    loaded_ = keys_in_window(own.begin, 1, left, 0).begin;
    written_ = own.begin;
  }

  /// Moves to the queries [first, first + count), which begin a panel; the keys behind the run are not loaded.
  void next(std::int64_t first, std::int64_t count) {
    first_ = first;
    count_ = count;
    base_ = first - (panels - 1) * panel_keys;
    write_key_gradients(base_);
    for (const std::int64_t end = smaller(first + count, own_.end); loaded_ < end; ++loaded_) {
      load_token(loaded_);
    }
  }

  /// Adds the contribution of one query head.
  void compute(std::int64_t query_head) {
    for (std::int64_t r = 0; r < count_; r += tile_rows) {
      const int rows = static_cast<int>(smaller<std::int64_t>(tile_rows, count_ - r));
      T log_sums[tile_rows];
      T deltas[tile_rows];
      for (int i = 0; i < rows; ++i) {
        load_query(r + i, query_head, log_sums[i], deltas[i]);
      }
      compute_weights(r, rows, log_sums, deltas);
      if (call_.wants_query() && first_ < own_.end) {
        write_query_gradients(r, rows, query_head);
      }
    }
    if (call_.wants_key() || call_.wants_value()) {
      add_key_gradients();
    }
  }

  /// Writes the gradients that are not written yet.
  void finish() { write_key_gradients(own_.end); }

 private:
  /// Where a token is in the ring; tokens before the sequence never are.
  static std::int64_t slot_of(std::int64_t token) { return token % ring_keys; }

  /// Calls `function(begin, end)` for the part of the range in each panel.
  template <class Function>
  static void for_panels(const TokenRange& range, const Function& function) {
    for (std::int64_t begin = range.begin; begin < range.end;) {
      const std::int64_t end = smaller(begin / panel_keys * panel_keys + panel_keys, range.end);
      function(begin, end);
      begin = end;
    }
  }

  /// Keys that queries of this panel see, of those of the run and before it.
  [[nodiscard]] TokenRange seen_by(std::int64_t r, std::int64_t rows) const {
    const TokenRange range = keys_in_window(first_ + r, rows, left, 0);
    return {range.begin, larger(range.begin, smaller(range.end, own_.end))};
  }

  template <class View>
  [[nodiscard]] auto* row_of(const View& view, std::int64_t token, std::int64_t head) const {
    return view.row(span_.batch_row, span_.first_token + span_.left_pad + token, head);
  }

  void load_token(std::int64_t token) {
    const std::int64_t slot = slot_of(token);
    T* const key = key_rows_ + slot * head_stride;
    convert_row(row_of(call_.key, token, head_), key, head_dim);
    std::fill(key + head_dim, key + head_stride, T(0));
    if constexpr (Config::Rotary::rotates) {
      rotate(call_.rotary, token, key);
      for (int c = 0; c < head_dim; ++c) {
        key[c] = convert<T>(convert<Element>(key[c]));  // as the forward pass rounds it
      }
    }
    convert_row(row_of(call_.value, token, head_), row_, value_dim);
    const std::int64_t panel = slot / panel_keys * panel_keys;
    set_column(key, key_columns_ + panel * head_dim + slot - panel, head_dim);
    set_column(row_, value_columns_ + panel * value_dim + slot - panel, value_dim);
    std::fill_n(key_gradients_ + slot * head_stride, head_stride, T(0));
    std::fill_n(value_gradients_ + slot * value_stride, value_stride, T(0));
  }
  static void set_column(const T* row, T* column, int count) {
    for (int c = 0; c < count; ++c) {
      column[c * panel_keys] = row[c];
    }
  }

  /// Loads query r, times the scale, and the gradient of its output; finds what its weights and their gradients need.
  void load_query(std::int64_t r, std::int64_t query_head, T& log_sum, T& delta) {
    const std::int64_t token = first_ + r;
    T* const query = queries_ + r * head_stride;
    convert_row(row_of(call_.query, token, query_head), query, head_dim);
    rotate(call_.rotary, token, query);
    const auto scale = static_cast<T>(call_.scale);
    for (int c = 0; c < head_dim; ++c) {
      query[c] *= scale;
    }
    std::fill(query + head_dim, query + head_stride, T(0));
    T* const gradient = output_gradients_ + r * value_stride;
    convert_row(row_of(call_.output_gradient, token, query_head), gradient, value_dim);
    std::fill(gradient + value_dim, gradient + value_stride, T(0));
    convert_row(row_of(call_.output, token, query_head), row_, value_dim);
    std::fill(row_ + value_dim, row_ + value_stride, T(0));
    delta = dot(gradient, row_, value_stride);
    log_sum = *row_of(call_.log_sum_exp, token, query_head);
  }

  /// P and dS of `rows` queries from r on; 0 for keys that they do not see.
  void compute_weights(std::int64_t r, int rows, const T* log_sums, const T* deltas) {
    const TokenRange range = seen_by(r, rows);
    const std::int64_t begin = range.begin / lanes<T> * lanes<T>;
    const std::int64_t end = begin + round_up<std::int64_t>(range.end - begin, lanes<T>);
    T* const weights = weights_ + r * ring_keys;
    T* const gradients = score_gradients_ + r * ring_keys;
    const bool wants_scores = call_.wants_query() || call_.wants_key();
    for_panels({begin, end}, [&](std::int64_t from, std::int64_t to) {
      const std::int64_t slot = slot_of(from);
      const std::int64_t panel = slot / panel_keys * panel_keys;
      multiply(weights + (from - base_), rows, to - from, Left<T>{queries_ + r * head_stride, head_stride, 1},
               Right<T>{key_columns_ + panel * head_dim + slot - panel, panel_keys}, head_dim);
      if (wants_scores) {
        multiply(gradients + (from - base_), rows, to - from,
                 Left<T>{output_gradients_ + r * value_stride, value_stride, 1},
                 Right<T>{value_columns_ + panel * value_dim + slot - panel, panel_keys}, value_dim);
      }
    });
    for (int i = 0; i < rows; ++i) {
      const TokenRange seen = seen_by(r + i, 1);
      T* const p = weights + i * ring_keys;
      T* const ds = gradients + i * ring_keys;
      if (log_sums[i] == -std::numeric_limits<T>::infinity() || seen.size() == 0) {
        std::fill(p, p + ring_keys, T(0));
        std::fill(ds, ds + ring_keys, T(0));
        continue;
      }
      to_weights(p + (begin - base_), end - begin, log_sums[i]);
      hide_outside(p, seen);
      if (wants_scores) {
        to_score_gradients(p + (begin - base_), ds + (begin - base_), end - begin, deltas[i]);
        hide_outside(ds, seen);
      }
    }
  }
  static void multiply(T* result, int rows, std::int64_t columns, const Left<T>& a, const Right<T>& b,
                       std::ptrdiff_t depth) {
    sum_of_products(result, ring_keys, rows, static_cast<int>(columns), a, b, depth, a, b, 0);
  }
  /// Scores become e^(score − log_sum).
  static void to_weights(T* scores, std::int64_t count, T log_sum) {
    const Packet<T> shift = broadcast(log_sum);
    for (std::int64_t c = 0; c < count; c += lanes<T>) {
      store(scores + c, exponential(Eigen::internal::psub(cpu::load(scores + c), shift)));
    }
  }
  /// Gradients of weights become those of scores.
  static void to_score_gradients(const T* weights, T* gradients, std::int64_t count, T delta) {
    const Packet<T> shift = broadcast(delta);
    for (std::int64_t c = 0; c < count; c += lanes<T>) {
      store(gradients + c, cpu::multiply(cpu::load(weights + c), Eigen::internal::psub(cpu::load(gradients + c), shift)));
    }
  }
  /// Zeroes a row but for the keys in the range.
  void hide_outside(T* row, const TokenRange& range) const {
    std::fill(row, row + (range.begin - base_), T(0));
    std::fill(row + (range.end - base_), row + ring_keys, T(0));
  }

  void write_query_gradients(std::int64_t r, int rows, std::int64_t query_head) {
    std::fill_n(query_gradients_, std::ptrdiff_t{rows} * head_stride, T(0));
    for_panels(seen_by(r, rows), [&](std::int64_t from, std::int64_t to) {
      add(query_gradients_, head_stride, rows, Left<T>{score_gradients_ + r * ring_keys + (from - base_), ring_keys, 1},
          Right<T>{key_rows_ + slot_of(from) * head_stride, head_stride}, to - from);
    });
    for (int i = 0; i < rows; ++i) {
      T* const gradient = query_gradients_ + std::ptrdiff_t{i} * head_stride;
      for (int c = 0; c < head_dim; ++c) {
        gradient[c] *= static_cast<T>(call_.scale);
      }
      rotate_back(call_.rotary, first_ + r + i, gradient);
      write_row(gradient, row_of(call_.query_gradient, first_ + r + i, query_head), head_dim);
    }
  }

  static void write_row(T* gradient, Element* to, int count) {
    if constexpr (adds_gradients<Config>) {
      for (int c = 0; c < count; ++c) {
        gradient[c] += convert<T>(to[c]);
      }
    }
    convert_row(gradient, to, count);
  }

  /// Adds this panel's queries to the gradients of the keys and values of the run that they see.
  void add_key_gradients() {
    const TokenRange keys{larger(own_.begin, keys_in_window(first_, 1, left, 0).begin), smaller(first_ + count_, own_.end)};
    for_panels(keys, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t key = from; key < to; key += tile_rows) {
        const int rows = static_cast<int>(smaller<std::int64_t>(tile_rows, to - key));
        const TokenRange queries = queries_of_keys(key, rows, left, first_ + count_);
        const std::int64_t r = larger(queries.begin, first_) - first_;
        const std::int64_t depth = queries.end - first_ - r;
        const std::ptrdiff_t at = r * ring_keys + (key - base_);
        if (call_.wants_key()) {
          add(key_gradients_ + slot_of(key) * head_stride, head_stride, rows, Left<T>{score_gradients_ + at, 1, ring_keys},
              Right<T>{queries_ + r * head_stride, head_stride}, depth);
        }
        if (call_.wants_value()) {
          add(value_gradients_ + slot_of(key) * value_stride, value_stride, rows, Left<T>{weights_ + at, 1, ring_keys},
              Right<T>{output_gradients_ + r * value_stride, value_stride}, depth);
        }
      }
    });
  }
  static void add(T* result, int stride, int rows, const Left<T>& a, const Right<T>& b, std::int64_t depth) {
    add_product(result, stride, rows, stride, a, b, static_cast<std::ptrdiff_t>(depth));
  }

  /// Writes the gradients of the run's keys and values before `end`, which no later query sees.
  void write_key_gradients(std::int64_t end) {
    for (end = smaller(end, own_.end); written_ < end; ++written_) {
      T* const key = key_gradients_ + slot_of(written_) * head_stride;
      if (call_.wants_key()) {
        rotate_back(call_.rotary, written_, key);
        write_row(key, row_of(call_.key_gradient, written_, head_), head_dim);
      }
      if (call_.wants_value()) {
        write_row(value_gradients_ + slot_of(written_) * value_stride, row_of(call_.value_gradient, written_, head_),
                  value_dim);
      }
    }
  }

  const Call& call_;
  SequenceSpan span_;
  std::int64_t head_ = 0;
  TokenRange own_;
  std::int64_t loaded_ = 0;   // keys before it are, or were, in the ring
  std::int64_t written_ = 0;  // gradients of the run's keys before it are written
  std::int64_t first_ = 0;    // queries of the panel
  std::int64_t count_ = 0;
  std::int64_t base_ = 0;          // first token of the ring, in columns of weights; below 0 at first
  T* key_columns_ = nullptr;       // [panels][head_dim][panel_keys]
  T* value_columns_ = nullptr;     // [panels][value_dim][panel_keys]
  T* key_rows_ = nullptr;          // [ring_keys][head_stride]
  T* key_gradients_ = nullptr;     // [ring_keys][head_stride]
  T* value_gradients_ = nullptr;   // [ring_keys][value_stride]
  T* queries_ = nullptr;           // [panel_keys][head_stride]
  T* output_gradients_ = nullptr;  // [panel_keys][value_stride]
  T* weights_ = nullptr;           // [panel_keys][ring_keys]
  T* score_gradients_ = nullptr;   // [panel_keys][ring_keys]
  T* query_gradients_ = nullptr;   // [tile_rows][head_stride]
  T* row_ = nullptr;               // of a value or an output
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
