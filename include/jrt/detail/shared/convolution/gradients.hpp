// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/mixer/gated_convolution.hpp"
#include "jrt/state.hpp"

/// What both backends share of the convolution's gradients.
///
/// A segment of tokens [begin, stop) of a sequence computes the gradient of every sum from `begin` on, up to the K−1 after
/// its own, which its last inputs need; the next segment computes these again:
///
///                      begin                 stop
///     inputs read  ·····│·····················│·····        K−1 before and K−1 after
///     ds_t              │·····················│·····        the latter not added to the sums of dw
///     du_t              │·····················│
namespace jrt::detail {

/// Whether sums over tokens are wanted.
template <ConvolutionConfig Config>
JRT_DETAIL_HD bool sums_wanted(const BackwardArgs<Config>& args) {
  return args.weight_gradient != nullptr || args.bias_gradient != nullptr;
}

/// Sums over the tokens of a segment for one channel: the K of dw, then that of dbias. A row for each, of all channels.
template <ConvolutionConfig Config>
inline constexpr std::int64_t sums_of_channel = Config::kernel_width + 1;

/// Memory of the sums of all segments of `segment_tokens` rows, in the type that they are formed in.
template <ConvolutionConfig Config>
constexpr std::int64_t partial_sums(const BackwardArgs<Config>& args, std::int64_t segment_tokens) {
  return sums_wanted(args) ? row_runs(args.sequences, args.input.batch, args.input.tokens, segment_tokens) *
                                 sums_of_channel<Config> * args.input.dim
                           : 0;
}

}  // namespace jrt::detail
