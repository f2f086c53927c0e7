// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/convolution/gradient_walk.cuh"
#include "jrt/detail/cuda/convolution/kernels.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/detail/shared/convolution/gradients.hpp"
#include "jrt/detail/shared/convolution/inputs.hpp"
#include "jrt/mixer/gated_convolution.hpp"
#include "jrt/numeric.hpp"
#include "jrt/sequences.hpp"

/// The kernels of the convolution's gradients. The first is memory-bound and divided as the prefill: a thread has a few
/// neighbouring channels of a segment of tokens, with weights, the last inputs, the gradients of the last sums and its sums
/// for the gradients of weights in registers. Those of all segments are then added in a fixed order.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Channels of a thread: those of one access, or of half an access where their weights and sums would not fit in registers.
template <class Config>
inline constexpr int convolution_gradient_width =
    convolution_width<Config> > 4 && Config::kernel_width > 5 ? convolution_width<Config> / 2 : convolution_width<Config>;

template <class Config>
struct ConvolutionGradientCall {
  BackwardArgs<Config> args{};
  ConvolutionCompute<Config>* partials = nullptr;  // sums of the segments; null if they are not wanted
  std::int64_t count = 0;                          // of sequences
  std::int64_t segment_tokens = 1;                 // walked by one thread
  std::int64_t segments = 0;                       // of all sequences
};

/// The tokens of a sequence after the padding.
template <class Config, int width>
__device__ typename ChannelGradientWalk<Config, width>::Tokens gradient_tokens(const BackwardArgs<Config>& args,
                                                                               std::int64_t b, const SequenceSpan& span) {
  const auto first = [&](const auto& view) {
    return view.data == nullptr ? nullptr : view.row(span.batch_row, span.first_token + span.left_pad, 0);
  };
  const auto& final_gradient = args.final_state_gradient;
  return {span.tokens - span.left_pad,
          first(args.input),
          args.input.token_stride,
          first(args.gate),
          args.gate.token_stride,
          first(args.output_gradient),
          args.output_gradient.token_stride,
          first(args.input_gradient),
          args.input_gradient.token_stride,
          first(args.gate_gradient),
          args.gate_gradient.token_stride,
          final_gradient.empty() ? nullptr : final_gradient.pool.head(final_gradient.slot(b), 0)};
}

/// Gradients of inputs and gates, and the sums of every segment; one thread per group of channels and segment.
template <class Config, int width>
__global__ void __launch_bounds__(convolution_gradient_tuning.threads, convolution_gradient_tuning.blocks)
    channel_gradients(const ConvolutionGradientCall<Config> call) {
  const BackwardArgs<Config>& args = call.args;
  const std::int64_t groups = ceil_div<std::int64_t>(args.input.dim, width);
  const std::int64_t segment = thread_number() / groups;
  if (segment >= call.segments) {
    return;
  }
  ChannelGradientWalk<Config, width> channels(thread_number() % groups * width, args.input.dim);
  const RowRun run(args.sequences, args.input.tokens, segment, call.segment_tokens);
  const std::int64_t b = run.b;
  SequenceSpan span = within_views(sequence_span(args.sequences, b, args.input.tokens, 0), args.input.tokens, 0);
  if (run.within(span)) {
    const std::int64_t first = run.first_row;
    const std::int64_t end = smaller(first + call.segment_tokens, span.row_tokens);
    if (gradients_skipped(args, b)) {
      span.tokens = span.left_pad = 0;
    }
    const std::int64_t begin = clamped(span.left_pad, first, end);
    const std::int64_t stop = clamped(span.tokens, begin, end);
    const auto clear = [&](const TensorView<typename Config::Element>& gradient) {
      if (gradient.data != nullptr) {
        const auto at = [&](std::int64_t row) { return gradient.row(span.batch_row, span.first_token + row, 0); };
        channels.clear(at(first), gradient.token_stride, begin - first);
        channels.clear(at(stop), gradient.token_stride, end - stop);
      }
    };
    clear(args.input_gradient);
    clear(args.gate_gradient);
    if (begin < stop) {
      const std::int64_t position = begin - span.left_pad;
      channels.load_weights(args.weight, args.bias);
      channels.start(
          prefill_inputs<Config>(args.input, span, carried_inputs(args.initial_state, args.has_initial_state, b)), position,
          slots_aligned(args.initial_state.pool));
      channels.walk(gradient_tokens<Config, width>(args, b, span).from(position), static_cast<int>(stop - begin));
    }
  }
  if (call.partials != nullptr) {
    channels.store_totals(call.partials + segment * sums_of_channel<Config> * args.input.dim, args.input.dim);
  }
}

/// Adds the sums of all segments: a warp has 32 neighbouring sums of every eighth segment.
template <class Config>
__global__ void __launch_bounds__(convolution_gradient_tuning.sum_threads)
    add_segments(const ConvolutionGradientCall<Config> call) {
  using T = ConvolutionCompute<Config>;
  using Weight = typename Config::Weight;
  constexpr int lanes = 32;
  constexpr int warps = convolution_gradient_tuning.sum_threads / lanes;
  constexpr int in_flight = convolution_gradient_tuning.sums_in_flight;
  __shared__ T sums[warps][lanes];
  const std::int64_t channels = call.args.input.dim;
  const std::int64_t row = sums_of_channel<Config> * channels;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int warp = static_cast<int>(threadIdx.x) / lanes;
  const std::int64_t column = blockIdx.x * static_cast<std::int64_t>(lanes) + lane;
  T sum = 0;
  for (std::int64_t first = warp; first < call.segments && column < row; first += warps * in_flight) {
    T numbers[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      const std::int64_t segment = first + i * warps;
      numbers[i] = segment < call.segments ? call.partials[segment * row + column] : T(0);
    }
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      sum += numbers[i];
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= row) {
    return;
  }
  for (int w = 1; w < warps; ++w) {
    sum += sums[w][lane];
  }
  const std::int64_t k = column / channels;
  const std::int64_t c = column % channels;
  if (k == Config::kernel_width) {
    if (call.args.bias_gradient != nullptr) {
      call.args.bias_gradient[c] = convert<Weight>(sum);
    }
  } else if (call.args.weight_gradient != nullptr) {
    call.args.weight_gradient[c * Config::kernel_width + k] = convert<Weight>(sum);
  }
}

/// Gradients of the initial states, in a launch of its own: they may have the slots of the final states' gradients.
template <class Config, int width>
__global__ void __launch_bounds__(convolution_tuning.step_threads)
    initial_state_gradients(const ConvolutionGradientCall<Config> call) {
  const BackwardArgs<Config>& args = call.args;
  const std::int64_t groups = ceil_div<std::int64_t>(args.input.dim, width);
  const std::int64_t b = thread_number() / groups;
  if (b >= call.count || gradients_skipped(args, b)) {
    return;
  }
  ChannelGradientWalk<Config, width> channels(thread_number() % groups * width, args.input.dim);
  auto* const state = args.initial_state_gradient.pool.head(args.initial_state_gradient.slot(b), 0);
  const bool aligned = slots_aligned(args.initial_state_gradient.pool);
  if (args.has_initial_state != nullptr && args.has_initial_state[b] == 0) {
    channels.clear_initial(state, aligned);
    return;
  }
  const SequenceSpan span = within_views(sequence_span(args.sequences, b, args.input.tokens, 0), args.input.tokens, 0);
  channels.load_weights(args.weight, args.bias);
  channels.start(prefill_inputs<Config>(args.input, span, carried_inputs(args.initial_state, args.has_initial_state, b)), 0,
                 slots_aligned(args.initial_state.pool));
  channels.store_initial(gradient_tokens<Config, width>(args, b, span), state, aligned);
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
