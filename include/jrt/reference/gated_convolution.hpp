// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "jrt/mixer/gated_convolution.hpp"
#include "jrt/numeric.hpp"
#include "jrt/prefill.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"

/// The oracle of the gated short convolution (arXiv 2402.18668): the formula itself, in double, output by output:
///
///     y_t = activation(Σ_{τ<K} w_τ u_{t−K+1+τ} + bias) · gate_t.
///
/// For tests; O(T · C · K) and it allocates.
namespace jrt::reference {

namespace detail {

template <ConvolutionConfig Config>
class ConvolutionPrefill {
 public:
  explicit ConvolutionPrefill(const PrefillArgs<Config>& args) : args_(args) {}

  void run() const {
    const std::int64_t count = jrt::detail::sequence_count(args_.sequences, args_.input.batch);
    for (std::int64_t b = 0; b < count; ++b) {
      for (std::int64_t c = 0; c < args_.input.dim; ++c) {
        channel(b, c);
      }
    }
  }

 private:
  using Element = typename Config::Element;
  static constexpr int taps = Config::kernel_width;

  void channel(std::int64_t b, std::int64_t c) const {
    const auto span = jrt::detail::sequence_span(args_.sequences, b, args_.input.tokens, 0);
    // Input u_t is inputs[K − 1 + t].
    std::vector<double> inputs(taps - 1);
    if (jrt::detail::reads_initial_state(args_.initial_state, args_.has_initial_state, b)) {
      const Element* const carried = args_.initial_state.pool.head(args_.initial_state.slot(b), c);
      for (int i = 0; i < taps - 1; ++i) {
        inputs[static_cast<std::size_t>(i)] = convert<double>(carried[i]);
      }
    }
    for (std::int64_t i = 0; i < span.row_tokens; ++i) {
      const std::int64_t token = span.first_token + i;
      double y = 0;
      if (i >= span.left_pad && i < span.tokens) {
        inputs.push_back(convert<double>(args_.input.row(span.batch_row, token, 0)[c]));
        y = Config::Activation::apply(convolved(inputs, c));
        if (args_.gate.data != nullptr) {
          y *= convert<double>(args_.gate.row(span.batch_row, token, 0)[c]);
        }
      }
      args_.output.row(span.batch_row, token, 0)[c] = convert<Element>(y);
    }
    if (!args_.final_state.empty()) {
      Element* const carried = args_.final_state.pool.head(args_.final_state.slot(b), c);
      for (int i = 0; i < taps - 1; ++i) {
        carried[i] = convert<Element>(inputs[inputs.size() - (taps - 1) + static_cast<std::size_t>(i)]);
      }
    }
  }

  /// The sum over taps that ends at the last of these inputs.
  [[nodiscard]] double convolved(const std::vector<double>& inputs, std::int64_t c) const {
    double sum = args_.bias == nullptr ? 0.0 : convert<double>(args_.bias[c]);
    for (int k = 0; k < taps; ++k) {
      sum += convert<double>(args_.weight[c * taps + k]) * inputs[inputs.size() - taps + static_cast<std::size_t>(k)];
    }
    return sum;
  }

  const PrefillArgs<Config>& args_;
};

}  // namespace detail

/// Outputs as `jrt::prefill` defines them, and the final state if one is given; also the reference of a decode step from
/// the initial state. The arguments must be valid; no slot is skipped.
template <ConvolutionConfig Config>
void prefill(const PrefillArgs<Config>& args) {
  detail::ConvolutionPrefill<Config>(args).run();
}

}  // namespace jrt::reference
