// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/convolution/call.cuh"
#include "jrt/detail/cuda/convolution/channel_walk.cuh"
#include "jrt/detail/cuda/convolution/kernels.cuh"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/execution/cuda.cuh"
#include "jrt/status.hpp"
#include "jrt/tensor_view.hpp"

/// Launches the convolution's kernels: channels per thread, segments, grids.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <class E>
bool view_aligned(const TensorView<E>& view) {
  return view.data == nullptr || rows_aligned(view.data, view.batch_stride, view.token_stride);
}

/// Whether a thread takes the channels of one vector access: all rows must be aligned for it.
template <class Config>
bool takes_vectors(const ConvolutionCall<Config>& call) {
  return view_aligned(call.input) && view_aligned(call.gate) && view_aligned(call.output) &&
         (call.staging.data == nullptr || rows_aligned(call.staging.data, call.staging.token_stride()));
}

/// A grid of one thread for each item and group of channels.
template <class Config>
Grid convolution_grid(const ConvolutionCall<Config>& call, std::int64_t items, int threads, bool vectors) {
  const std::int64_t width = vectors ? convolution_width<Config> : 1;
  return {ceil_div<std::int64_t>(items * ceil_div(call.channels, width), threads), threads, 0};
}

/// Divides sequences into segments that fill the device, long enough, where there is enough work, that the K−1 inputs
/// before each cost little.
template <class Config>
void cut_segments(ConvolutionCall<Config>& call, bool vectors, const Cuda& on) {
  const std::int64_t width = vectors ? convolution_width<Config> : 1;
  const std::int64_t tokens = call.input.batch * call.input.tokens;
  const std::int64_t wanted_threads =
      convolution_tuning.multiprocessor_threads * static_cast<std::int64_t>(on.multiprocessors());
  call.segment_tokens = convolution_tuning.segment_tokens;
  while (call.segment_tokens > convolution_tuning.min_segment_tokens &&
         tokens / call.segment_tokens * ceil_div(call.channels, width) < wanted_threads) {
    call.segment_tokens /= 2;
  }
  call.segments = row_runs(call.sequences, call.input.batch, call.input.tokens, call.segment_tokens);
}

template <class Config>
Status launch_stores(const char* operation, const ConvolutionCall<Config>& call, bool vectors, const Cuda& on) {
  const Grid grid = convolution_grid(call, call.count, convolution_tuning.step_threads, vectors);
  return launch(operation, vectors ? store_inputs<Config, convolution_width<Config>> : store_inputs<Config, 1>, grid, on,
                call);
}

template <class Config>
Status launch_prefill(const char* operation, ConvolutionCall<Config> call, const Cuda& on) {
  const bool vectors = takes_vectors(call);
  cut_segments(call, vectors, on);
  const Grid grid = convolution_grid(call, call.segments, convolution_tuning.threads, vectors);
  const Status status =
      launch(operation, vectors ? convolve_segments<Config, convolution_width<Config>> : convolve_segments<Config, 1>, grid,
             on, call);
  return status.ok() && !call.destination.empty() ? launch_stores(operation, call, vectors, on) : status;
}

template <class Config, int width, int at_a_time>
Status launch_step(const char* operation, const ConvolutionCall<Config>& call, const Cuda& on) {
  Grid grid = convolution_grid(call, call.count, convolution_tuning.step_threads, width > 1);
  // A step is shorter than the time between two launches.
  grid.starts_early = can_start_early<convolve_step<Config, width, at_a_time>>(on);
  return launch(operation, convolve_step<Config, width, at_a_time>, grid, on, call);
}
template <class Config>
Status launch_step(const char* operation, const ConvolutionCall<Config>& call, const Cuda& on) {
  constexpr int width = convolution_width<Config>;
  constexpr int group = ChannelWalk<Config, width>::group;
  if (!takes_vectors(call)) {
    return launch_step<Config, 1, group>(operation, call, on);
  }
  return call.input.tokens == 1 ? launch_step<Config, width, 1>(operation, call, on)
                                : launch_step<Config, width, group>(operation, call, on);
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
