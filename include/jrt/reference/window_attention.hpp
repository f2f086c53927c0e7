// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "jrt/mixer/linear_attention.hpp"
#include "jrt/mixer/window_attention.hpp"
#include "jrt/numeric.hpp"
#include "jrt/prefill.hpp"
#include "jrt/reference/sums.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

/// The oracle of sliding-window attention (arXiv 2402.18668): softmax over the keys that a query sees, in double,
///
///     y_i = Σ_{i−L ≤ j ≤ i} e^{scale · q_i·k_j} v_j / Σ_{i−L ≤ j ≤ i} e^{scale · q_i·k_j},
///
/// q and k rotated by their positions where the mixer rotates, and the logarithm of the denominator. For tests; O(T · L)
/// and it allocates.
namespace jrt::reference {

/// A query or key, rotated by its position (counted from 0), in double.
template <WindowConfig Config>
std::vector<double> rotated_row(const typename Config::Element* row, const typename Config::Rotary& rotary,
                                std::int64_t position) {
  std::vector<double> x = in_double(row, Config::head_dim);
  if constexpr (Config::Rotary::rotates) {
    constexpr auto half = static_cast<std::size_t>(Config::Rotary::half_dim);
    for (std::size_t i = 0; i < half; ++i) {
      const auto [cosine, sine] = rotary.template rotation<double>(position, static_cast<int>(i));
      const double first = x[i];
      const double second = x[i + half];
      x[i] = first * cosine - second * sine;
      x[i + half] = first * sine + second * cosine;
    }
  }
  return x;
}

namespace detail {

/// Keys, rotated, and values of one sequence and head, oldest first: those that a cache holds, then the call's.
template <WindowConfig Config>
struct WindowTokens {
  std::vector<std::vector<double>> keys;
  std::vector<std::vector<double>> values;
  std::int64_t seen = 0;  // tokens of the sequence so far, possibly more than a cache holds

  /// One head of a cache.
  void add_cache(const typename Config::Element* ring) {
    using Format = StateFormatOf<Config>;
    std::memcpy(&seen, ring + Format::count_offset, sizeof seen);
    for (std::int64_t n = std::max<std::int64_t>(0, seen - Format::rows); n < seen; ++n) {
      const std::int64_t row = n % Format::rows;
      keys.push_back(in_double(ring + row * Config::head_dim, Config::head_dim));
      values.push_back(in_double(ring + Format::value_offset + row * Config::value_dim, Config::value_dim));
    }
  }

  void add_token(const typename Config::Element* key, const typename Config::Element* value,
                 const typename Config::Rotary& rotary) {
    keys.push_back(rotated_row<Config>(key, rotary, seen));
    values.push_back(in_double(value, Config::value_dim));
    ++seen;
  }
};

template <WindowConfig Config>
class WindowPrefill {
 public:
  explicit WindowPrefill(const PrefillArgs<Config>& args) : args_(args) {}

  void run() const {
    const std::int64_t count = jrt::detail::sequence_count(args_.sequences, args_.query.batch);
    for (std::int64_t b = 0; b < count; ++b) {
      for (std::int64_t h = 0; h < args_.query.heads; ++h) {
        head(b, h);
      }
    }
  }

 private:
  void head(std::int64_t b, std::int64_t h) const {
    const auto span = jrt::detail::sequence_span(args_.sequences, b, args_.query.tokens, 0);
    const std::int64_t kv = h / (args_.query.heads / args_.key.heads);
    WindowTokens<Config> tokens;
    if (jrt::detail::reads_initial_state(args_.initial_state, args_.has_initial_state, b)) {
      tokens.add_cache(args_.initial_state.pool.head(args_.initial_state.slot(b), kv));
    }
    for (std::int64_t i = 0; i < span.row_tokens; ++i) {
      const std::int64_t token = span.first_token + i;
      Sums sums{std::vector<double>(Config::value_dim), 1};
      double log_sum = -std::numeric_limits<double>::infinity();
      if (i >= span.left_pad && i < span.tokens) {
        const auto query = rotated_row<Config>(args_.query.row(span.batch_row, token, h), args_.rotary, tokens.seen);
        tokens.add_token(args_.key.row(span.batch_row, token, kv), args_.value.row(span.batch_row, token, kv),
                         args_.rotary);
        sums = attended(query, tokens, log_sum);
      }
      auto* const output = args_.output.row(span.batch_row, token, h);
      for (int c = 0; c < Config::value_dim; ++c) {
        output[c] = convert<typename Config::Element>(sums.numerator[static_cast<std::size_t>(c)] / sums.denominator);
      }
      if (args_.log_sum_exp.data != nullptr) {
        *args_.log_sum_exp.row(span.batch_row, token, h) = static_cast<ComputeType<typename Config::Element>>(log_sum);
      }
    }
  }

  /// Sums of the last token's query, and the logarithm of the sum of its weights. Every weight is divided by the largest,
  /// so that none overflows.
  [[nodiscard]] Sums attended(const std::vector<double>& query, const WindowTokens<Config>& tokens, double& log_sum) const {
    const std::size_t end = tokens.keys.size();
    const std::size_t begin = end - std::min<std::size_t>(end, Config::left_window + 1);
    std::vector<double> scores;
    for (std::size_t j = begin; j < end; ++j) {
      scores.push_back(args_.scale * dot(query, tokens.keys[j]));
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    Sums sums{std::vector<double>(Config::value_dim), 0};
    for (std::size_t j = begin; j < end; ++j) {
      sums.add(std::exp(scores[j - begin] - largest), tokens.values[j].data());
    }
    log_sum = largest + std::log(sums.denominator);
    return sums;
  }

  const PrefillArgs<Config>& args_;
};

}  // namespace detail

/// Outputs as `jrt::prefill` defines them, from an initial cache where there is one; also the reference of a decode step
/// from that cache. The arguments must be valid; no final cache is written, no slot skipped.
template <WindowConfig Config>
void prefill(const PrefillArgs<Config>& args) {
  detail::WindowPrefill<Config>(args).run();
}

}  // namespace jrt::reference
