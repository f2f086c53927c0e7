// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/convolution/call.cuh"
#include "jrt/detail/cuda/convolution/channel_walk.cuh"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/detail/shared/convolution/inputs.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"

/// The convolution's kernels. All are memory-bound: a thread has a few neighbouring channels, as many as one access holds,
/// and walks tokens with weights and the last inputs in registers.
///
///                channels  0 … 7   8 … 15  …          bfloat16: 8 in an access
///     segment 0  tokens 0 │thread 0│thread 1│          reads the carried inputs, then S tokens
///                  …    S │        │        │
///     segment 1         S │thread G│thread G+1         reads the K−1 tokens before its own once more
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Blocks per multiprocessor.
template <class Config>
inline constexpr int convolution_blocks = Config::kernel_width <= 3   ? convolution_tuning.blocks_narrow
                                          : Config::kernel_width <= 5 ? convolution_tuning.blocks_medium
                                                                      : convolution_tuning.blocks_wide;

/// Whether slots are aligned for a vector access. Not used with one channel per thread.
template <class Format>
__device__ bool slots_aligned(const StatePoolView<Format>& pool) {
  return rows_aligned(pool.data, pool.slot_stride);
}

/// Index of the thread in the grid.
__device__ inline std::int64_t thread_number() {
  return blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
}

template <class Config>
__device__ SequenceSpan span_of(const ConvolutionCall<Config>& call, std::int64_t b) {
  return within_views(sequence_span(call.sequences, b, call.input.tokens, 0), call.input.tokens, 0);
}

/// Outputs of a prefill; one thread per group of channels and segment.
template <class Config, int width>
__global__ void __launch_bounds__(convolution_tuning.threads, convolution_blocks<Config>)
    convolve_segments(const ConvolutionCall<Config> call) {
  const std::int64_t groups = ceil_div<std::int64_t>(call.channels, width);
  const std::int64_t segment = thread_number() / groups;
  if (segment >= call.segments) {
    return;
  }
  const RowRun run(call.sequences, call.input.tokens, segment, call.segment_tokens);
  const std::int64_t b = run.b;
  SequenceSpan span = span_of(call, b);
  if (!run.within(span)) {
    return;
  }
  const std::int64_t first = run.first_row;
  const std::int64_t end = smaller(first + call.segment_tokens, span.row_tokens);
  if (sequence_skipped(call.source, call.has_source, call.destination, b)) {
    span.tokens = span.left_pad = 0;
  }
  ChannelWalk<Config, width> channels(thread_number() % groups * width, call.channels);
  const std::int64_t padding_end = clamped(span.left_pad, first, end);
  const std::int64_t begin = clamped(span.left_pad + (call.left_out == nullptr ? 0 : call.left_out[b]), padding_end, end);
  const std::int64_t stop = clamped(span.tokens, begin, end);
  const auto at = [&](const auto& view, std::int64_t row) { return view.row(span.batch_row, span.first_token + row, 0); };
  channels.clear(at(call.output, first), call.output.token_stride, padding_end - first);
  if (begin < stop) {
    channels.load_weights(call.weight, call.bias);
    channels.start(prefill_inputs<Config>(call.input, span, carried_inputs(call.source, call.has_source, b)),
                   begin - span.left_pad, slots_aligned(call.source.pool));
    channels.walk(
        {at(call.input, begin), call.input.token_stride, call.gate.data == nullptr ? nullptr : at(call.gate, begin),
         call.gate.token_stride, at(call.output, begin), call.output.token_stride},
        stop - begin);
  }
  channels.clear(at(call.output, stop), call.output.token_stride, end - stop);
}

/// Stores the states after a prefill or a commit, in a launch of its own: source and destination may be one slot, which the
/// first segment of a prefill reads and the last would write.
template <class Config, int width>
__global__ void __launch_bounds__(convolution_tuning.step_threads) store_inputs(const ConvolutionCall<Config> call) {
  const std::int64_t groups = ceil_div<std::int64_t>(call.channels, width);
  const std::int64_t b = thread_number() / groups;
  if (b >= call.count || sequence_skipped(call.source, call.has_source, call.destination, b)) {
    return;
  }
  ConvolutionInputs<Config> inputs;
  std::int64_t position = 0;
  if (call.accepted_tokens != nullptr) {
    inputs = {call.staging.row(b, 0, 0), call.staging.token_stride(), carried_inputs(call.source, call.has_source, b)};
    position = clamped(call.accepted_tokens[b], 0, call.staging.tokens);
  } else {
    const SequenceSpan span = span_of(call, b);
    inputs = prefill_inputs<Config>(call.input, span, carried_inputs(call.source, call.has_source, b));
    position = span.tokens - span.left_pad;
  }
  ChannelWalk<Config, width> channels(thread_number() % groups * width, call.channels);
  channels.start(inputs, position, slots_aligned(call.source.pool));
  channels.store_carried(call.destination.pool.head(call.destination.slot(b), 0), slots_aligned(call.destination.pool));
}

/// Whether all that the first tokens of a step read can be asked for at once (ChannelWalk::StepNumbers).
template <class Config, int width>
__device__ bool steps_at_once(const ConvolutionCall<Config>& call) {
  return call.input.tokens > 0 && call.already_staged == 0 && call.channels % width == 0 && rows_aligned(call.weight) &&
         rows_aligned(call.bias) && !call.source.empty() && slots_aligned(call.source.pool) &&
         (call.destination.empty() || slots_aligned(call.destination.pool));
}

/// Asks the second-level cache, which may be done before the previous kernel has completed, for what a step reads,
/// but the bias, and the state where slots say which it is.
template <class Config, int width>
__device__ void prefetch_step(const ConvolutionCall<Config>& call, std::int64_t b, std::int64_t channel) {
  const auto prefetch = [](const void* at) { asm volatile("prefetch.global.L2 [%0];" : : "l"(at)); };
  constexpr int carried = Config::kernel_width - 1;
  if (call.source.slots == nullptr && b < call.source.pool.slots) {
    for (int v = 0; v < carried; ++v) {
      prefetch(call.source.pool.head(b, 0) + channel * carried + v * width);
    }
  }
  for (int v = 0; v < Config::kernel_width; ++v) {
    prefetch(call.weight + channel * Config::kernel_width + v * width);
  }
  prefetch(call.input.row(b, 0, 0) + channel);
  if (call.gate.data != nullptr) {
    prefetch(call.gate.row(b, 0, 0) + channel);
  }
}

/// A step, staged or not; one thread per group of channels and sequence.
template <class Config, int width, int at_a_time>
__global__ void __launch_bounds__(convolution_tuning.step_threads) convolve_step(const ConvolutionCall<Config> call) {
  const std::int64_t groups = ceil_div<std::int64_t>(call.channels, width);
  const std::int64_t b = thread_number() / groups;
  const std::int64_t channel = thread_number() % groups * width;
  if (width > 1 && b < call.count && gridDim.x <= convolution_tuning.prefetching_blocks &&
      steps_at_once<Config, width>(call)) {
    prefetch_step<Config, width>(call, b, channel);
  }
  await_previous_kernel();
  let_next_kernel_start();
  if (b >= call.count) {
    return;
  }
  ChannelWalk<Config, width> channels(channel, call.channels);
  const bool is_staged = call.staging.data != nullptr;
  std::int64_t tokens = call.input.tokens;
  if (sequence_skipped(call.source, nullptr, call.destination, b)) {
    channels.clear(call.output.row(b, 0, 0), call.output.token_stride, tokens);
    return;
  }
  typename ChannelWalk<Config, width>::Tokens rows{call.input.row(b, 0, 0),
                                                   call.input.token_stride,
                                                   call.gate.data == nullptr ? nullptr : call.gate.row(b, 0, 0),
                                                   call.gate.token_stride,
                                                   call.output.row(b, 0, 0),
                                                   call.output.token_stride,
                                                   is_staged ? call.staging.row(b, call.already_staged, 0) : nullptr,
                                                   call.staging.token_stride()};
  if (width > 1 && steps_at_once<Config, width>(call)) {
    const auto first = static_cast<int>(smaller<std::int64_t>(at_a_time, tokens));
    channels.take_step(channels.template ask_for_step<at_a_time>(
                           call.weight, call.bias, call.source.pool.head(call.source.slot(b), 0), rows, first),
                       rows, first);
    rows.advance(first);
    tokens -= first;
  } else {
    channels.load_weights(call.weight, call.bias);
    channels.start({is_staged ? call.staging.row(b, 0, 0) : nullptr, call.staging.token_stride(),
                    carried_inputs(call.source, nullptr, b)},
                   call.already_staged, slots_aligned(call.source.pool));
  }
  channels.template walk<at_a_time>(rows, tokens);
  if (!call.destination.empty()) {
    channels.store_carried(call.destination.pool.head(call.destination.slot(b), 0), slots_aligned(call.destination.pool));
  }
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
