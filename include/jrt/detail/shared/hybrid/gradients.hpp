// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/detail/plan/backward_plan.hpp"
#include "jrt/detail/shared/window/backward_call.hpp"
#include "jrt/mixer/hybrid_attention.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/mixer/window_attention.hpp"

/// The backward pass of the hybrid mixer as those of its two mixers. Both know the same normaliser n_i, as its logarithm
/// l_i, and the same dy_i·y_i; a weight w_ij of either kind has the gradient
///
///     dw_ij = e^{−l_i} (dy_i·v_j − dy_i·y_i)
///
/// which is what window attention computes from l, and linear attention from a normaliser whose factor is e^{−l}. Linear
/// attention goes first and writes; window attention adds.
namespace jrt::detail {

/// The factor of a normaliser that is given by its logarithm. Its derivative is that for the normaliser itself.
struct NormaliserByLogarithm {
  static constexpr bool uses_denominator = true;
  static constexpr bool accepts_signed_kernel = false;

  template <class T>
  JRT_DETAIL_HD static T factor(T logarithm) {
    return std::exp(-logarithm);
  }
  template <class T>
  JRT_DETAIL_HD static T factor_derivative(T logarithm) {
    return -factor(logarithm) * factor(logarithm);
  }
};

/// The linear part as an operator of its own: token i sees the keys before i − L.
template <class LinearT, class Window>
struct LinearPartGradients : LinearT {
  using Normaliser = NormaliserByLogarithm;
  static constexpr std::int64_t key_delay = Window::left_window + 1;
};

/// The window part, which adds to the gradients of the linear part.
template <class WindowT>
struct WindowPartGradients : WindowT {
  static constexpr bool adds_gradients = true;
};

template <HybridConfig Config>
struct HybridGradientParts {
  using Linear = LinearPartGradients<typename Config::Linear, typename Config::Window>;
  using Window = WindowPartGradients<typename Config::Window>;

  static BackwardArgs<Linear> linear(const BackwardArgs<Config>& args) {
    BackwardArgs<Linear> part;
    part.query = args.query;
    part.key = args.key;
    part.value = args.value;
    part.key_encoder = args.key_encoder;
    part.value_encoder = args.value_encoder;
    part.output = args.output;
    part.denominators = args.log_sum_exp;
    part.sequences = args.sequences;
    part.feature_map = args.feature_map;
    part.output_gradient = args.output_gradient;
    part.query_gradient = args.query_gradient;
    part.key_gradient = args.key_gradient;
    part.value_gradient = args.value_gradient;
    part.key_encoder_gradient = args.key_encoder_gradient;
    part.value_encoder_gradient = args.value_encoder_gradient;
    return part;
  }

  static WindowBackwardCall<Window> window(const BackwardArgs<Config>& args) {
    WindowBackwardCall<Window> part;
    part.query = args.query;
    part.key = args.key;
    part.value = args.value;
    part.output = args.output;
    part.log_sum_exp = args.log_sum_exp;
    part.output_gradient = args.output_gradient;
    part.query_gradient = args.query_gradient;
    part.key_gradient = args.key_gradient;
    part.value_gradient = args.value_gradient;
    part.sequences = args.sequences;
    part.scale = default_window_scale<Window>;
    return part;
  }
};

}  // namespace jrt::detail
