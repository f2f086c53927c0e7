// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/detail/shared/convolution/inputs.hpp"

/// The convolution's kernels. Everything is bound by memory: a thread has a few neighbouring channels, as many as one
/// access holds, and walks tokens with weights and the last inputs in registers.
///
///                channels  0 … 7   8 … 15  …          bfloat16: 8 in an access
///     segment 0  tokens 0 │thread 0│thread 1│          reads the carried inputs, then S tokens
///                  …    S │        │        │
///     segment 1         S │thread G│thread G+1         reads the K−1 tokens before its own once more
namespace jrt::detail::cuda {

/// One call in terms that all operations share.
template <class Config>
struct ConvolutionCall {
  using E = typename Config::Element;
  using Weight = typename Config::Weight;
  using Format = StateFormatOf<Config>;

  TensorView<const E> input{};
  TensorView<const E> gate{};
  TensorView<E> output{};
  const Weight* weight = nullptr;
  const Weight* bias = nullptr;
  Sequences sequences{};
  StateSlots<Format> source{};
  const std::uint8_t* has_source = nullptr;
  StateSlots<Format> destination{};  // empty: the state is not written
  StagingView<Config> staging{};     // empty: nothing is staged
  std::int64_t already_staged = 0;
  const std::int32_t* accepted_tokens = nullptr;
  std::int64_t count = 0;           // of sequences
  std::int64_t channels = 0;        // of each
  std::int64_t segment_tokens = 1;  // that a thread of a prefill walks
  std::int64_t segments = 0;        // of all sequences
};

/// Numbers in one access.
template <class Config>
inline constexpr int convolution_width = access_bytes / static_cast<int>(sizeof(typename Config::Element));

/// The activation on the device. Outputs of 16 bits have no digits that the fast exponential and quotient would lose.
template <class Config, class T>
__device__ T activated(T sum) {
  if constexpr (std::is_same_v<typename Config::Activation, Silu> && sizeof(typename Config::Element) == 2 &&
                std::is_same_v<T, float>) {
    return __fdividef(sum, 1.0F + __expf(-sum));
  } else {
    return Config::Activation::apply(sum);
  }
}

/// `width` neighbouring channels of one sequence on their way through its tokens. With a width above 1 rows are aligned.
template <class Config, int width>
class ChannelWalk {
 public:
  using E = typename Config::Element;
  using Weight = typename Config::Weight;
  using T = ConvolutionCompute<Config>;
  using Row = StoredNumbers<E, width>;
  static constexpr int kernel_width = Config::kernel_width;
  static constexpr int carried = kernel_width - 1;
  /// Tokens whose inputs and gates are fetched before the first is used.
  static constexpr int group = kernel_width <= 4 ? 4 : 2;

  __device__ ChannelWalk(std::int64_t first, std::int64_t channels)
      : first_(first), count_(static_cast<int>(smaller<std::int64_t>(width, channels - first))) {}

  __device__ void load_weights(const Weight* weight, const Weight* bias) {
    load_transposed(weight + first_ * kernel_width, rows_aligned(weight), weights_);
    for (int c = 0; c < width; ++c) {
      bias_[c] = bias != nullptr && c < count_ ? convert<T>(bias[first_ + c]) : T(0);
    }
  }

  /// The K−1 inputs before `position`. `state_aligned`: whether slots begin at multiples of 16 bytes.
  __device__ void start(const ConvolutionInputs<Config>& inputs, std::int64_t position, bool state_aligned) {
    if (position == 0 && inputs.state != nullptr) {
      load_transposed(inputs.state + first_ * carried, state_aligned, recent_);
      return;
    }
#pragma unroll
    for (int i = 0; i < carried; ++i) {
      const std::int64_t p = position - carried + i;
      if (p >= 0) {
        fetch(inputs.row(p)).get(recent_[i]);
      } else {
#pragma unroll
        for (int c = 0; c < width; ++c) {
          recent_[i][c] = c < count_ ? convert<T>(inputs.carried_number(p, first_ + c)) : T(0);
        }
      }
    }
  }

  /// Rows of a walk: all null or from its first token on.
  struct Tokens {
    const E* input = nullptr;
    std::int64_t input_stride = 0;
    const E* gate = nullptr;
    std::int64_t gate_stride = 0;
    E* output = nullptr;
    std::int64_t output_stride = 0;
    E* staged = nullptr;  // where inputs are copied to, if anywhere
    std::int64_t staged_stride = 0;

    __device__ void advance(int tokens) {
      input += tokens * input_stride;
      gate += gate == nullptr ? 0 : tokens * gate_stride;
      output += tokens * output_stride;
      staged += staged == nullptr ? 0 : tokens * staged_stride;
    }
  };

  template <int at_a_time = group>
  __device__ void walk(Tokens rows, std::int64_t tokens) {
    for (; at_a_time > 1 && tokens >= at_a_time; tokens -= at_a_time) {
      several<at_a_time>(rows);
      rows.advance(at_a_time);
    }
    for (; tokens > 0; --tokens) {
      several<1>(rows);
      rows.advance(1);
    }
  }

  /// The last K−1 inputs, into a slot.
  __device__ void store_carried(E* state, bool state_aligned) const {
    E* const to = state + first_ * carried;
#pragma unroll
    for (int v = 0; v < carried; ++v) {
      T numbers[width];
#pragma unroll
      for (int c = 0; c < width; ++c) {
        const int number = v * width + c;
        numbers[c] = recent_[number % carried][number / carried];
      }
      if (state_aligned && whole()) {
        Row stored;
        stored.set(numbers);
        stored.store(to + v * width, true);
      } else {
#pragma unroll
        for (int c = 0; c < width; ++c) {
          if (v * width + c < count_ * carried) {
            to[v * width + c] = convert<E>(numbers[c]);
          }
        }
      }
    }
  }

  /// Outputs of padding.
  __device__ void clear(E* output, std::int64_t stride, std::int64_t tokens) const {
    for (std::int64_t t = 0; t < tokens; ++t) {
      put(output + t * stride, Row{});
    }
  }

 private:
  [[nodiscard]] __device__ bool whole() const {
    return count_ == width;
  }

  /// These channels of a row.
  __device__ Row fetch(const E* row) const {
    Row numbers;
    if (whole()) {
      numbers.load(row + first_, true);
    } else {
      T single[width];
#pragma unroll
      for (int c = 0; c < width; ++c) {
        single[c] = c < count_ ? convert<T>(row[first_ + c]) : T(0);
      }
      numbers.set(single);
    }
    return numbers;
  }
  __device__ void put(E* row, const Row& numbers) const {
    if (whole()) {
      numbers.store(row + first_, true);
    } else {
      T single[width];
      numbers.get(single);
#pragma unroll
      for (int c = 0; c < width; ++c) {
        if (c < count_) {
          row[first_ + c] = convert<E>(single[c]);
        }
      }
    }
  }

  /// `rows` numbers of each channel, the channels one after the other; those that are none are 0.
  template <class From, int rows>
  __device__ void load_transposed(const From* from, bool aligned, T (&to)[rows][width]) const {
#pragma unroll
    for (int v = 0; v < rows; ++v) {
      T numbers[width];
      if (aligned && whole()) {
        StoredNumbers<From, width> stored;
        stored.load(from + v * width, true);
        stored.get(numbers);
      } else {
#pragma unroll
        for (int c = 0; c < width; ++c) {
          numbers[c] = v * width + c < count_ * rows ? convert<T>(from[v * width + c]) : T(0);
        }
      }
#pragma unroll
      for (int c = 0; c < width; ++c) {
        const int number = v * width + c;
        to[number % rows][number / rows] = numbers[c];
      }
    }
  }

  template <int tokens>
  __device__ void several(const Tokens& rows) {
    Row inputs[tokens];
    Row gates[tokens];
#pragma unroll
    for (int t = 0; t < tokens; ++t) {
      inputs[t] = fetch(rows.input + t * rows.input_stride);
    }
    if (rows.gate != nullptr) {
#pragma unroll
      for (int t = 0; t < tokens; ++t) {
        gates[t] = fetch(rows.gate + t * rows.gate_stride);
      }
    }
#pragma unroll
    for (int t = 0; t < tokens; ++t) {
      if (rows.staged != nullptr) {
        put(rows.staged + t * rows.staged_stride, inputs[t]);
      }
      T newest[width];
      inputs[t].get(newest);
      T result[width];
#pragma unroll
      for (int c = 0; c < width; ++c) {
        T sum = bias_[c];
#pragma unroll
        for (int k = 0; k < carried; ++k) {
          sum = fma(weights_[k][c], recent_[k][c], sum);
        }
        sum = fma(weights_[carried][c], newest[c], sum);
        result[c] = activated<Config>(sum);
#pragma unroll
        for (int k = 0; k + 1 < carried; ++k) {
          recent_[k][c] = recent_[k + 1][c];
        }
        recent_[carried - 1][c] = newest[c];
      }
      if (rows.gate != nullptr) {
        T factor[width];
        gates[t].get(factor);
#pragma unroll
        for (int c = 0; c < width; ++c) {
          result[c] *= factor[c];
        }
      }
      Row output;
      output.set(result);
      put(rows.output + t * rows.output_stride, output);
    }
  }

  std::int64_t first_;
  int count_;
  T weights_[kernel_width][width];
  T bias_[width];
  T recent_[carried][width];  // inputs, oldest first
};

inline constexpr int convolution_threads = 128;
/// Steps have few threads: smaller blocks spread them over more multiprocessors.
inline constexpr int convolution_step_threads = 64;

/// Registers for one access' channels are what limits the threads: this many blocks leave no value in memory.
template <class Config>
inline constexpr int convolution_blocks = Config::kernel_width <= 3 ? 4 : (Config::kernel_width <= 5 ? 3 : 2);

/// Whether slots begin where one access may begin. Not looked at with one channel a thread.
template <class Format>
__device__ bool slots_aligned(const StatePoolView<Format>& pool) {
  return rows_aligned(pool.data, pool.slot_stride);
}

/// The thread's number among those of all blocks.
__device__ inline std::int64_t thread_number() {
  return blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
}

template <class Config>
__device__ SequenceSpan span_of(const ConvolutionCall<Config>& call, std::int64_t b) {
  return within_views(sequence_span(call.sequences, b, call.input.tokens, 0), call.input.tokens, 0);
}

/// Outputs of a prefill: a thread has one group of channels in one segment.
template <class Config, int width>
__global__ void __launch_bounds__(convolution_threads, convolution_blocks<Config>)
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
  const std::int64_t begin = clamped(span.left_pad, first, end);
  const std::int64_t stop = clamped(span.tokens, begin, end);
  const auto at = [&](const auto& view, std::int64_t row) { return view.row(span.batch_row, span.first_token + row, 0); };
  channels.clear(at(call.output, first), call.output.token_stride, begin - first);
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

/// States after a prefill or a commit, in a launch of their own: source and destination may be one slot, which the first
/// segment of a prefill reads and the last would write.
template <class Config, int width>
__global__ void __launch_bounds__(convolution_step_threads) store_inputs(const ConvolutionCall<Config> call) {
  const std::int64_t groups = ceil_div<std::int64_t>(call.channels, width);
  const std::int64_t b = thread_number() / groups;
  if (b >= call.count || sequence_skipped(call.source, call.has_source, call.destination, b)) {
    return;
  }
  ConvolutionInputs<Config> inputs;
  std::int64_t position = 0;
  if (call.accepted_tokens != nullptr) {
    inputs = {call.staging.row(b, 0, 0), call.channels, carried_inputs(call.source, call.has_source, b)};
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

/// A step, staged or not: a thread has one group of channels of one sequence.
template <class Config, int width, int at_a_time>
__global__ void __launch_bounds__(convolution_step_threads) convolve_step(const ConvolutionCall<Config> call) {
  await_previous_kernel();
  let_next_kernel_start();
  const std::int64_t groups = ceil_div<std::int64_t>(call.channels, width);
  const std::int64_t b = thread_number() / groups;
  if (b >= call.count) {
    return;
  }
  ChannelWalk<Config, width> channels(thread_number() % groups * width, call.channels);
  const bool is_staged = call.staging.data != nullptr;
  const std::int64_t tokens = call.input.tokens;
  if (sequence_skipped(call.source, nullptr, call.destination, b)) {
    channels.clear(call.output.row(b, 0, 0), call.output.token_stride, tokens);
    return;
  }
  channels.load_weights(call.weight, call.bias);
  channels.start({is_staged ? call.staging.row(b, 0, 0) : nullptr, call.channels, carried_inputs(call.source, nullptr, b)},
                 call.already_staged, slots_aligned(call.source.pool));
  channels.template walk<at_a_time>(
      {call.input.row(b, 0, 0), call.input.token_stride, call.gate.data == nullptr ? nullptr : call.gate.row(b, 0, 0),
       call.gate.token_stride, call.output.row(b, 0, 0), call.output.token_stride,
       is_staged ? call.staging.row(b, call.already_staged, 0) : nullptr, call.channels},
      tokens);
  if (!call.destination.empty()) {
    channels.store_carried(call.destination.pool.head(call.destination.slot(b), 0), slots_aligned(call.destination.pool));
  }
}

template <class E>
bool view_aligned(const TensorView<E>& view) {
  return view.data == nullptr || rows_aligned(view.data, view.batch_stride, view.token_stride);
}

/// Channels a thread: those of one access, if all rows allow it.
template <class Config>
bool takes_vectors(const ConvolutionCall<Config>& call) {
  return view_aligned(call.input) && view_aligned(call.gate) && view_aligned(call.output) &&
         (call.staging.data == nullptr || rows_aligned(call.staging.data, call.channels));
}

/// A grid of one thread for each item and group of channels.
template <class Config>
Grid convolution_grid(const ConvolutionCall<Config>& call, std::int64_t items, int threads, bool vectors) {
  const std::int64_t width = vectors ? convolution_width<Config> : 1;
  return {ceil_div<std::int64_t>(items * ceil_div(call.channels, width), threads), threads, 0};
}

/// Cuts sequences so that the device is full: long enough that the K−1 inputs before each segment do not show, if there is
/// enough to do.
template <class Config>
void cut_segments(ConvolutionCall<Config>& call, bool vectors, const Cuda& on) {
  const std::int64_t width = vectors ? convolution_width<Config> : 1;
  const std::int64_t tokens = call.input.batch * call.input.tokens;
  const std::int64_t wanted_threads = 2048 * static_cast<std::int64_t>(on.multiprocessors());
  call.segment_tokens = 128;
  while (call.segment_tokens > 8 && tokens / call.segment_tokens * ceil_div(call.channels, width) < wanted_threads) {
    call.segment_tokens /= 2;
  }
  call.segments = row_runs(call.sequences, call.input.batch, call.input.tokens, call.segment_tokens);
}

template <class Config>
Status launch_stores(const char* operation, const ConvolutionCall<Config>& call, bool vectors, const Cuda& on) {
  const Grid grid = convolution_grid(call, call.count, convolution_step_threads, vectors);
  return launch(operation, vectors ? store_inputs<Config, convolution_width<Config>> : store_inputs<Config, 1>, grid, on,
                call);
}

template <class Config>
Status launch_prefill(const char* operation, ConvolutionCall<Config> call, const Cuda& on) {
  const bool vectors = takes_vectors(call);
  cut_segments(call, vectors, on);
  const Grid grid = convolution_grid(call, call.segments, convolution_threads, vectors);
  const Status status =
      launch(operation, vectors ? convolve_segments<Config, convolution_width<Config>> : convolve_segments<Config, 1>, grid,
             on, call);
  return status.ok() && !call.destination.empty() ? launch_stores(operation, call, vectors, on) : status;
}

template <class Config, int width, int at_a_time>
Status launch_step(const char* operation, const ConvolutionCall<Config>& call, const Cuda& on) {
  Grid grid = convolution_grid(call, call.count, convolution_step_threads, width > 1);
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
  return call.input.tokens < group ? launch_step<Config, width, 1>(operation, call, on)
                                   : launch_step<Config, width, group>(operation, call, on);
}

}  // namespace jrt::detail::cuda
