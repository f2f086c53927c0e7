// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "jrt/mixer/gated_convolution.hpp"
#include "jrt/numeric.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"

/// The oracle of the gated short convolution's gradients: the chain rule, output by output, in double. With s_t the sum
/// before the activation,
///
///     dgate_t = dy_t · activation(s_t),    ds_t = dy_t · gate_t · activation'(s_t),
///
/// and every product w_τ u in s_t adds w_τ ds_t to du and u ds_t to dw_τ. For tests; O(T · C · K) and it allocates.
namespace jrt::reference {

namespace detail {

template <ConvolutionConfig Config>
class ConvolutionBackward {
 public:
  explicit ConvolutionBackward(const BackwardArgs<Config>& args) : args_(args) {}

  void run() const {
    const std::int64_t count = jrt::detail::sequence_count(args_.sequences, args_.input.batch);
    for (std::int64_t c = 0; c < args_.input.dim; ++c) {
      std::vector<double> sums(taps + 1);  // dw, dbias
      for (std::int64_t b = 0; b < count; ++b) {
        channel(b, c, sums);
      }
      for (std::size_t k = 0; k < taps && args_.weight_gradient != nullptr; ++k) {
        args_.weight_gradient[c * Config::kernel_width + static_cast<std::int64_t>(k)] = convert<Weight>(sums[k]);
      }
      if (args_.bias_gradient != nullptr) {
        args_.bias_gradient[c] = convert<Weight>(sums[taps]);
      }
    }
  }

 private:
  using Element = typename Config::Element;
  using Weight = typename Config::Weight;
  static constexpr std::size_t taps = Config::kernel_width;

  void channel(std::int64_t b, std::int64_t c, std::vector<double>& sums) const {
    const auto span = jrt::detail::sequence_span(args_.sequences, b, args_.input.tokens, 0);
    const auto tokens = static_cast<std::size_t>(span.tokens - span.left_pad);
    const auto at = [&](const auto& view, std::size_t token) -> auto& {
      return view.row(span.batch_row, span.first_token + span.left_pad + static_cast<std::int64_t>(token), 0)[c];
    };
    // Input u_t is inputs[K − 1 + t], and likewise its gradient.
    std::vector<double> inputs(taps - 1);
    const bool reads = jrt::detail::reads_initial_state(args_.initial_state, args_.has_initial_state, b);
    for (std::size_t i = 0; i < taps - 1 && reads; ++i) {
      inputs[i] = convert<double>(args_.initial_state.pool.head(args_.initial_state.slot(b), c)[i]);
    }
    for (std::size_t t = 0; t < tokens; ++t) {
      inputs.push_back(convert<double>(at(args_.input, t)));
    }
    std::vector<double> gradients(inputs.size());
    for (std::size_t i = 0; i < taps - 1 && !args_.final_state_gradient.empty(); ++i) {
      gradients[tokens + i] =
          convert<double>(args_.final_state_gradient.pool.head(args_.final_state_gradient.slot(b), c)[i]);
    }
    clear(args_.input_gradient, span, c);
    clear(args_.gate_gradient, span, c);
    for (std::size_t t = 0; t < tokens; ++t) {
      double sum = args_.bias == nullptr ? 0.0 : convert<double>(args_.bias[c]);
      for (std::size_t k = 0; k < taps; ++k) {
        sum += weight(c, k) * inputs[t + k];
      }
      const double output_gradient = convert<double>(at(args_.output_gradient, t));
      if (args_.gate_gradient.data != nullptr) {
        at(args_.gate_gradient, t) = convert<Element>(output_gradient * Config::Activation::apply(sum));
      }
      const double gate = args_.gate.data == nullptr ? 1.0 : convert<double>(at(args_.gate, t));
      const double sum_gradient = output_gradient * gate * Config::Activation::derivative(sum);
      for (std::size_t k = 0; k < taps; ++k) {
        gradients[t + k] += sum_gradient * weight(c, k);
        sums[k] += sum_gradient * inputs[t + k];
      }
      sums[taps] += sum_gradient;
    }
    for (std::size_t t = 0; t < tokens && args_.input_gradient.data != nullptr; ++t) {
      at(args_.input_gradient, t) = convert<Element>(gradients[taps - 1 + t]);
    }
    if (!args_.initial_state_gradient.empty()) {
      auto* const initial = args_.initial_state_gradient.pool.head(args_.initial_state_gradient.slot(b), c);
      const bool is_ignored = args_.has_initial_state != nullptr && args_.has_initial_state[b] == 0;
      for (std::size_t i = 0; i < taps - 1; ++i) {
        initial[i] = convert<jrt::detail::ConvolutionCompute<Config>>(is_ignored ? 0.0 : gradients[i]);
      }
    }
  }

  /// All rows of a sequence; those of tokens are written afterwards.
  static void clear(const TensorView<Element>& gradient, const jrt::detail::SequenceSpan& span, std::int64_t c) {
    for (std::int64_t i = 0; i < span.row_tokens && gradient.data != nullptr; ++i) {
      gradient.row(span.batch_row, span.first_token + i, 0)[c] = Element{};
    }
  }

  [[nodiscard]] double weight(std::int64_t c, std::size_t k) const {
    return convert<double>(args_.weight[c * Config::kernel_width + static_cast<std::int64_t>(k)]);
  }

  const BackwardArgs<Config>& args_;
};

}  // namespace detail

/// Gradients as `jrt::backward` defines them. The arguments must be valid; no slot is skipped.
template <ConvolutionConfig Config>
void backward(const BackwardArgs<Config>& args) {
  detail::ConvolutionBackward<Config>(args).run();
}

}  // namespace jrt::reference
