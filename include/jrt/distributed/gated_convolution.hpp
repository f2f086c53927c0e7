// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/distributed/convolution.hpp"
#include "jrt/detail/distributed/halo_plan.hpp"
#include "jrt/detail/distributed/run.hpp"
#include "jrt/distributed/context_parallel.hpp"
#include "jrt/mixer/gated_convolution.hpp"

/// Context-parallel gated convolution: a rank gets the K−1 inputs before each of its pieces that begins inside a sequence.
/// A backward pass exchanges them again and sends their gradients back, which the ranks that have these tokens add to
/// theirs. Gradients of weights and bias are this rank's share: their sum over all ranks is the gradient, as in data
/// parallelism.
///
/// Exchanged: (K−1) · C elements for each sequence that two ranks share. Outputs and states are bitwise those of one device
/// in as much as they do not depend on a call's other tokens; gradients agree within the bounds of "Accuracy".
namespace jrt {

template <ConvolutionConfig Config>
class ContextPlan<Config> : public detail::HaloContextPlan<ContextPlan<Config>> {
 public:
  static constexpr std::int64_t halo_rows = Config::kernel_width - 1;
  static constexpr std::int64_t halo_reach = Config::kernel_width - 1;
};

/// Arguments of a context-parallel prefill of the convolution. A sequence that has an initial state and goes on on another
/// rank must have 0 or at least K−1 tokens before that rank.
template <ConvolutionConfig Config>
struct ContextPrefillArgs<Config> {
  PrefillArgs<Config> local{};                ///< this rank's tensors and, by the layout's sequences, states
  const ContextPlan<Config>* plan = nullptr;  ///< for the communicator's rank and size
};

/// Arguments of a context-parallel backward pass of the convolution.
template <ConvolutionConfig Config>
struct ContextBackwardArgs<Config> {
  BackwardArgs<Config> local{};
  const ContextPlan<Config>* plan = nullptr;
};

namespace detail {

template <ConvolutionConfig Config, class Execution>
struct ContextMixer<Config, Execution> : ContextCalls<Config, Execution, ConvolutionContextPrefill<Config, Execution>,
                                                      ConvolutionContextBackward<Config, Execution>> {};

}  // namespace detail

}  // namespace jrt
