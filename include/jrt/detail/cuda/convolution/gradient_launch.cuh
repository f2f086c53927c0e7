// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/check/mixer.hpp"
#include "jrt/detail/cuda/convolution/gradient_kernels.cuh"
#include "jrt/detail/cuda/convolution/launch.cuh"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/convolution/gradients.hpp"
#include "jrt/execution/cuda.cuh"
#include "jrt/mixer/gated_convolution.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

/// Launches the kernels of the convolution's gradients.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Tokens of a segment: few enough that segments fill the device. Whether rows are aligned does not matter, for the size of
/// the workspace is asked before the tensors are there.
template <class Config>
std::int64_t gradient_segment_tokens(const BackwardArgs<Config>& args, const Cuda& on) {
  constexpr ConvolutionGradientTuning tuning = convolution_gradient_tuning;
  const std::int64_t tokens = args.input.batch * args.input.tokens;
  const std::int64_t groups = ceil_div<std::int64_t>(args.input.dim, convolution_gradient_width<Config>);
  const std::int64_t wanted_threads = tuning.multiprocessor_threads * static_cast<std::int64_t>(on.multiprocessors());
  std::int64_t segment_tokens = tuning.segment_tokens;
  while (segment_tokens > tuning.min_segment_tokens && tokens / segment_tokens * groups < wanted_threads) {
    segment_tokens /= 2;
  }
  return segment_tokens;
}

/// A call and the memory that it needs.
template <class Config>
struct ConvolutionGradientWork {
  using T = ConvolutionCompute<Config>;

  ConvolutionGradientCall<Config> call;

  ConvolutionGradientWork(const BackwardArgs<Config>& args, const Cuda& on) {
    call.args = args;
    call.count = sequences_of(args);
    call.segment_tokens = gradient_segment_tokens(args, on);
    call.segments = row_runs(args.sequences, args.input.batch, args.input.tokens, call.segment_tokens);
  }
  void take(Arena& arena) {
    if (sums_wanted(call.args)) {
      call.partials = arena.take<T>(partial_sums(call.args, call.segment_tokens));
    }
  }
};

/// Whether a thread takes neighbouring channels with one access.
template <class Config>
bool takes_vectors(const BackwardArgs<Config>& args) {
  return view_aligned(args.input) && view_aligned(args.gate) && view_aligned(args.output_gradient) &&
         view_aligned(args.input_gradient) && view_aligned(args.gate_gradient);
}

template <class Config, int width>
Status launch_gradients(const char* operation, const ConvolutionGradientCall<Config>& call, const Cuda& on) {
  constexpr ConvolutionGradientTuning tuning = convolution_gradient_tuning;
  const BackwardArgs<Config>& args = call.args;
  const std::int64_t groups = ceil_div<std::int64_t>(args.input.dim, width);
  const auto grid = [&](std::int64_t items, int threads) {
    return Grid{ceil_div<std::int64_t>(items * groups, threads), threads, 0};
  };
  Status status = launch(operation, channel_gradients<Config, width>, grid(call.segments, tuning.threads), on, call);
  if (status.ok() && sums_wanted(args)) {
    constexpr std::int64_t lanes = 32;
    const std::int64_t sums = sums_of_channel<Config> * args.input.dim;
    status = launch(operation, add_segments<Config>, Grid{ceil_div(sums, lanes), tuning.sum_threads, 0}, on, call);
  }
  if (status.ok() && !args.initial_state_gradient.empty()) {
    constexpr int threads = convolution_tuning.step_threads;
    status = launch(operation, initial_state_gradients<Config, width>, grid(call.count, threads), on, call);
  }
  return status;
}
template <class Config>
Status launch_gradients(const char* operation, const ConvolutionGradientCall<Config>& call, const Cuda& on) {
  return takes_vectors(call.args) ? launch_gradients<Config, convolution_gradient_width<Config>>(operation, call, on)
                                  : launch_gradients<Config, 1>(operation, call, on);
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
