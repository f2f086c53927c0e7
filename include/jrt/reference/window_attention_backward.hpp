// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "jrt/backward.hpp"
#include "jrt/mixer/window_attention.hpp"
#include "jrt/numeric.hpp"
#include "jrt/reference/sums.hpp"
#include "jrt/reference/window_attention.hpp"
#include "jrt/sequences.hpp"
#include "jrt/tensor_view.hpp"

/// The oracle of the gradients of sliding-window attention, straight from the derivative of the softmax, in double:
///
///     P_ij = e^{s_ij} / Σ_j e^{s_ij},  s_ij = scale · q_i·k_j,    dS_ij = P_ij (dy_i·v_j − Σ_j P_ij dy_i·v_j)
///     dq_i = scale Σ_j dS_ij k_j,    dk_j = scale Σ_i dS_ij q_i,    dv_j = Σ_i P_ij dy_i
///
/// q and k rotated by their positions where the mixer rotates, dq and dk rotated back. For tests; O(T · L) and it
/// allocates.
namespace jrt::reference {

namespace detail {

/// The gradient of a vector from that of the vector rotated: the rotation transposed.
template <WindowConfig Config>
void rotate_back(std::vector<double>& gradient, const typename Config::Rotary& rotary, std::int64_t position) {
  if constexpr (Config::Rotary::rotates) {
    constexpr auto half = static_cast<std::size_t>(Config::Rotary::half_dim);
    for (std::size_t i = 0; i < half; ++i) {
      const auto [cosine, sine] = rotary.template rotation<double>(position, static_cast<int>(i));
      const double first = gradient[i];
      const double second = gradient[i + half];
      gradient[i] = first * cosine + second * sine;
      gradient[i + half] = second * cosine - first * sine;
    }
  }
}

template <WindowConfig Config>
class WindowBackward {
 public:
  explicit WindowBackward(const BackwardArgs<Config>& args) : args_(args) {}

  void run() const {
    const std::int64_t count = jrt::detail::sequence_count(args_.sequences, args_.query.batch);
    for (std::int64_t b = 0; b < count; ++b) {
      for (std::int64_t h = 0; h < args_.key.heads; ++h) {
        head(b, h);
      }
    }
  }

 private:
  using Rows = std::vector<std::vector<double>>;

  template <class View>
  static void write(const View& view, const jrt::detail::SequenceSpan& span, std::int64_t row, std::int64_t head,
                    const std::vector<double>& numbers) {
    if (view.data != nullptr) {
      auto* const to = view.row(span.batch_row, span.first_token + row, head);
      for (std::size_t c = 0; c < numbers.size(); ++c) {
        to[c] = convert<typename Config::Element>(numbers[c]);
      }
    }
  }

  /// A key/value head and its query heads.
  void head(std::int64_t b, std::int64_t kv) const {
    const auto span = jrt::detail::sequence_span(args_.sequences, b, args_.query.tokens, 0);
    const std::int64_t group = args_.query.heads / args_.key.heads;
    const auto rows = static_cast<std::size_t>(span.row_tokens);
    Rows keys(rows);
    Rows values(rows);
    Rows key_gradients(rows, std::vector<double>(Config::head_dim));
    Rows value_gradients(rows, std::vector<double>(Config::value_dim));
    for (std::int64_t i = span.left_pad; i < span.tokens; ++i) {
      const std::int64_t token = span.first_token + i;
      const auto at = static_cast<std::size_t>(i);
      keys[at] = rotated_row<Config>(args_.key.row(span.batch_row, token, kv), args_.rotary, i - span.left_pad);
      values[at] = in_double(args_.value.row(span.batch_row, token, kv), Config::value_dim);
    }
    for (std::int64_t h = kv * group; h < (kv + 1) * group; ++h) {
      for (std::int64_t i = 0; i < span.row_tokens; ++i) {
        std::vector<double> query_gradient(Config::head_dim);
        if (i >= span.left_pad && i < span.tokens) {
          query(span, i, h, keys, values, query_gradient, key_gradients, value_gradients);
          rotate_back<Config>(query_gradient, args_.rotary, i - span.left_pad);
        }
        write(args_.query_gradient, span, i, h, query_gradient);
      }
    }
    for (std::int64_t i = 0; i < span.row_tokens; ++i) {
      const auto at = static_cast<std::size_t>(i);
      rotate_back<Config>(key_gradients[at], args_.rotary, i - span.left_pad);
      write(args_.key_gradient, span, i, kv, key_gradients[at]);
      write(args_.value_gradient, span, i, kv, value_gradients[at]);
    }
  }

  /// Adds what the query of row i contributes.
  void query(const jrt::detail::SequenceSpan& span, std::int64_t i, std::int64_t h, const Rows& keys, const Rows& values,
             std::vector<double>& query_gradient, Rows& key_gradients, Rows& value_gradients) const {
    const std::int64_t token = span.first_token + i;
    const auto query = rotated_row<Config>(args_.query.row(span.batch_row, token, h), args_.rotary, i - span.left_pad);
    const auto output_gradient = in_double(args_.output_gradient.row(span.batch_row, token, h), Config::value_dim);
    const auto begin = static_cast<std::size_t>(std::max(span.left_pad, i - Config::left_window));
    const auto end = static_cast<std::size_t>(i + 1);
    std::vector<double> weights;
    std::vector<double> weight_gradients;
    for (std::size_t j = begin; j < end; ++j) {
      weights.push_back(args_.scale * dot(query, keys[j]));
      weight_gradients.push_back(dot(output_gradient, values[j]));
    }
    const double largest = *std::max_element(weights.begin(), weights.end());
    double total = 0;
    for (double& weight : weights) {
      weight = std::exp(weight - largest);
      total += weight;
    }
    double mean = 0;
    for (std::size_t j = 0; j < weights.size(); ++j) {
      weights[j] /= total;
      mean += weights[j] * weight_gradients[j];
    }
    for (std::size_t j = begin; j < end; ++j) {
      const double weight = weights[j - begin];
      const double score_gradient = args_.scale * weight * (weight_gradients[j - begin] - mean);
      add_scaled(query_gradient, score_gradient, keys[j]);
      add_scaled(key_gradients[j], score_gradient, query);
      add_scaled(value_gradients[j], weight, output_gradient);
    }
  }

  const BackwardArgs<Config>& args_;
};

}  // namespace detail

/// Gradients as `jrt::backward` defines them. The arguments must be valid; `output` and `log_sum_exp` are not read.
template <WindowConfig Config>
void backward(const BackwardArgs<Config>& args) {
  detail::WindowBackward<Config>(args).run();
}

}  // namespace jrt::reference
