// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "jrt/backward.hpp"
#include "jrt/mixer/hybrid_attention.hpp"
#include "jrt/numeric.hpp"
#include "jrt/reference/sums.hpp"
#include "jrt/sequences.hpp"

/// The oracle of the hybrid mixer's gradients: the chain rule pair by pair, in double. With x_ij = q_i·k_j, κ the kernel of
/// the feature map, n_i the sum of the weights and ε,
///
///     w_ij = e^{x_ij/√d} in the window, κ(x_ij) for older keys and the encoder region,    y_i = Σ_j w_ij v_j / n_i
///     dw_ij = (dy_i·v_j − dy_i·y_i) / n_i,    dx_ij = dw_ij ∂w_ij/∂x_ij
///     dq_i = Σ_j dx_ij k_j,    dk_j = Σ_i dx_ij q_i,    dv_j = Σ_i w_ij/n_i dy_i
///
/// The saved outputs and logarithms are not read. For tests; O(T²) and it allocates.
namespace jrt::reference {

namespace detail {

template <HybridConfig Config>
class HybridBackward {
 public:
  explicit HybridBackward(const BackwardArgs<Config>& args) : args_(args) {}

  void run() const {
    const std::int64_t count = jrt::detail::sequence_count(args_.sequences, args_.query.batch);
    for (std::int64_t b = 0; b < count; ++b) {
      for (std::int64_t h = 0; h < args_.key.heads; ++h) {
        head(b, h);
      }
    }
  }

 private:
  using Linear = typename Config::Linear;
  using Window = typename Config::Window;
  using Numbers = std::vector<double>;
  static constexpr int head_dim = Window::head_dim;
  static constexpr int value_dim = Window::value_dim;

  /// A key and its value, with their gradients.
  struct Pair {
    Numbers key;
    Numbers value;
    Numbers key_gradient = Numbers(head_dim);
    Numbers value_gradient = Numbers(value_dim);
  };

  template <class View>
  static void write(const View& view, std::int64_t row, std::int64_t token, std::int64_t head, const Numbers& numbers) {
    if (view.data != nullptr) {
      std::transform(numbers.begin(), numbers.end(), view.row(row, token, head),
                     [](double number) { return convert<typename Config::Element>(number); });
    }
  }

  void head(std::int64_t b, std::int64_t kv) const {
    const auto span = jrt::detail::sequence_span(args_.sequences, b, args_.query.tokens, args_.key_encoder.tokens);
    const std::int64_t group = args_.query.heads / args_.key.heads;
    const std::int64_t prefix = Linear::Mask::reads_encoder ? span.prefix : 0;
    const auto pair_at = [](const auto& keys, const auto& values, std::int64_t row, std::int64_t token, std::int64_t head) {
      return Pair{in_double(keys.row(row, token, head), head_dim), in_double(values.row(row, token, head), value_dim)};
    };
    std::vector<Pair> encoder;
    for (std::int64_t j = span.left_pad; j < prefix; ++j) {
      encoder.push_back(pair_at(args_.key_encoder, args_.value_encoder, span.encoder_row, span.encoder_first + j, kv));
    }
    std::vector<Pair> pairs;
    for (std::int64_t i = span.left_pad; i < span.tokens; ++i) {
      pairs.push_back(pair_at(args_.key, args_.value, span.batch_row, span.first_token + i, kv));
    }
    for (std::int64_t h = kv * group; h < (kv + 1) * group; ++h) {
      for (std::int64_t i = 0; i < span.row_tokens; ++i) {
        Numbers gradient(head_dim);
        if (i >= span.left_pad && i < span.tokens) {
          add_query(span.batch_row, span.first_token + i, h, static_cast<std::size_t>(i - span.left_pad), pairs, encoder,
                    gradient);
        }
        write(args_.query_gradient, span.batch_row, span.first_token + i, h, gradient);
      }
    }
    for (std::int64_t i = 0; i < span.row_tokens; ++i) {
      const bool is_token = i >= span.left_pad && i < span.tokens;
      const Pair pair = is_token ? pairs[static_cast<std::size_t>(i - span.left_pad)] : Pair{};
      write(args_.key_gradient, span.batch_row, span.first_token + i, kv, pair.key_gradient);
      write(args_.value_gradient, span.batch_row, span.first_token + i, kv, pair.value_gradient);
    }
    for (std::int64_t j = 0; j < span.encoder_tokens; ++j) {
      const bool is_token = j >= span.left_pad && j < prefix;
      const Pair pair = is_token ? encoder[static_cast<std::size_t>(j - span.left_pad)] : Pair{};
      write(args_.key_encoder_gradient, span.encoder_row, span.encoder_first + j, kv, pair.key_gradient);
      write(args_.value_encoder_gradient, span.encoder_row, span.encoder_first + j, kv, pair.value_gradient);
    }
  }

  /// What the query of token i, row `token` of the views, contributes to all gradients. Weights and their derivatives are
  /// divided by the largest e^s, if that is above 1, so that none overflows.
  void add_query(std::int64_t row, std::int64_t token, std::int64_t head, std::size_t i, std::vector<Pair>& pairs,
                 std::vector<Pair>& encoder, Numbers& query_gradient) const {
    const Numbers query = in_double(args_.query.row(row, token, head), head_dim);
    const Numbers output_gradient = in_double(args_.output_gradient.row(row, token, head), value_dim);
    const double scale = 1 / std::sqrt(static_cast<double>(head_dim));
    const std::size_t first_exact = i - std::min<std::size_t>(i, Window::left_window);
    double largest = 0;
    for (std::size_t j = first_exact; j <= i; ++j) {
      largest = std::max(largest, scale * dot(query, pairs[j].key));
    }
    struct Weighted {
      Pair* pair;
      double weight;
      double derivative;
      double along;  // dy·v
    };
    std::vector<Weighted> seen;
    const auto see = [&](Pair& pair, bool exact) {
      const double x = dot(query, pair.key);
      const double weight = exact ? std::exp(scale * x - largest) : args_.feature_map.kernel(x) * std::exp(-largest);
      const double derivative = exact ? scale * weight : args_.feature_map.kernel_derivative(x) * std::exp(-largest);
      seen.push_back({&pair, weight, derivative, dot(output_gradient, pair.value)});
    };
    for (std::size_t j = 0; j <= i; ++j) {
      see(pairs[j], j >= first_exact);
    }
    for (Pair& pair : encoder) {
      see(pair, false);
    }
    double total = Linear::Normaliser::epsilon * std::exp(-largest);
    double mean = 0;
    for (const Weighted& each : seen) {
      total += each.weight;
      mean += each.weight * each.along;
    }
    mean /= total;
    for (const Weighted& each : seen) {
      const double score_gradient = (each.along - mean) / total * each.derivative;
      add_scaled(query_gradient, score_gradient, each.pair->key);
      add_scaled(each.pair->key_gradient, score_gradient, query);
      add_scaled(each.pair->value_gradient, each.weight / total, output_gradient);
    }
  }

  const BackwardArgs<Config>& args_;
};

}  // namespace detail

/// Gradients as `jrt::backward` defines them. The arguments must be valid.
template <HybridConfig Config>
void backward(const BackwardArgs<Config>& args) {
  detail::HybridBackward<Config>(args).run();
}

}  // namespace jrt::reference
