// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/convolution/inputs.hpp"
#include "jrt/numeric.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The activation on the device. The errors of the fast exponential and quotient are below the rounding of 16-bit outputs.
template <class Config, class T>
__device__ T activated(T sum) {
  if constexpr (std::is_same_v<typename Config::Activation, Silu> && sizeof(typename Config::Element) == 2 &&
                std::is_same_v<T, float>) {
    return __fdividef(sum, 1.0F + __expf(-sum));
  } else {
    return Config::Activation::apply(sum);
  }
}

/// Convolves `width` neighbouring channels of one sequence token by token. With a width above 1 rows are aligned.
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

  /// Loads the K−1 inputs before `position`. `state_aligned`: whether slots begin at multiples of 16 bytes.
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

  /// Rows of a walk, from its first token on; null where there are none.
  struct Tokens {
    const E* input = nullptr;
    std::int64_t input_stride = 0;
    const E* gate = nullptr;
    std::int64_t gate_stride = 0;
    E* output = nullptr;
    std::int64_t output_stride = 0;
    E* staged = nullptr;  // destination of a copy of the inputs, if any
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

  /// All that a step of up to `most` tokens reads, as stored: asked for before any of it is used. Rows are aligned, and no
  /// channel is missing.
  template <int most>
  struct StepNumbers {
    StoredNumbers<Weight, width> weights[kernel_width];
    StoredNumbers<Weight, width> bias;
    StoredNumbers<E, width> carried_inputs[carried];
    Row inputs[most];
    Row gates[most];
  };
  /// Of a sequence whose state is `state`; `bias` may be null.
  template <int most>
  __device__ StepNumbers<most> ask_for_step(const Weight* weight, const Weight* bias, const E* state, const Tokens& rows,
                                            int tokens) const {
    StepNumbers<most> step;
#pragma unroll
    for (int v = 0; v < kernel_width; ++v) {
      step.weights[v].load(weight + first_ * kernel_width + v * width, true);
    }
#pragma unroll
    for (int v = 0; v < carried; ++v) {
      step.carried_inputs[v].load(state + first_ * carried + v * width, true);
    }
    // Without a branch, for tokens that do not exist: they are the last once more.
#pragma unroll
    for (int t = 0; t < most; ++t) {
      step.inputs[t].load(rows.input + smaller(t, tokens - 1) * rows.input_stride + first_, true);
    }
    if (rows.gate != nullptr) {
#pragma unroll
      for (int t = 0; t < most; ++t) {
        step.gates[t].load(rows.gate + smaller(t, tokens - 1) * rows.gate_stride + first_, true);
      }
    }
    if (bias != nullptr) {
      step.bias.load(bias + first_, true);
    }
    return step;
  }
  /// Makes the outputs of so many tokens; afterwards the walk is where `start` and `walk` over them would have left it.
  template <int most>
  __device__ void take_step(const StepNumbers<most>& step, const Tokens& rows, int tokens) {
    transpose(step.weights, weights_);
    step.bias.get(bias_);
    transpose(step.carried_inputs, recent_);
#pragma unroll
    for (int t = 0; t < most; ++t) {
      if (t < tokens) {
        if (rows.staged != nullptr) {
          put(rows.staged + t * rows.staged_stride, step.inputs[t]);
        }
        emit(step.inputs[t], step.gates[t], rows.gate != nullptr, rows.output + t * rows.output_stride);
      }
    }
  }

  /// Takes the next input of channel `c` of these and returns the output, not yet multiplied by its gate.
  __device__ T next(int c, T newest) {
    T sum = bias_[c];
#pragma unroll
    for (int k = 0; k < carried; ++k) {
      sum = fma(weights_[k][c], recent_[k][c], sum);
    }
    sum = fma(weights_[carried][c], newest, sum);
#pragma unroll
    for (int k = 0; k + 1 < carried; ++k) {
      recent_[k][c] = recent_[k + 1][c];
    }
    recent_[carried - 1][c] = newest;
    return activated<Config>(sum);
  }

  /// Stores the last K−1 inputs in a slot.
  __device__ void store_carried(E* state, bool state_aligned) const {
    store_transposed(recent_, state, state_aligned);
  }

  /// Zeroes the outputs of padding.
  __device__ void clear(E* output, std::int64_t stride, std::int64_t tokens) const {
    for (std::int64_t t = 0; t < tokens; ++t) {
      put(output + t * stride, Row{});
    }
  }

 protected:
  [[nodiscard]] __device__ bool whole() const {
    return count_ == width;
  }

  /// Loads these channels of a row.
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

  /// `rows` values of each channel, stored channel after channel.
  template <class From, int rows>
  __device__ static void transpose(const StoredNumbers<From, width> (&stored)[rows], T (&to)[rows][width]) {
#pragma unroll
    for (int v = 0; v < rows; ++v) {
      T numbers[width];
      stored[v].get(numbers);
#pragma unroll
      for (int c = 0; c < width; ++c) {
        const int number = v * width + c;
        to[number % rows][number / rows] = numbers[c];
      }
    }
  }

  /// Loads `rows` values of each channel, channel after channel; those of missing channels are 0.
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

  /// Stores `rows` values of each channel, channel after channel, in a slot that begins at `slot`.
  template <class To, int rows>
  __device__ void store_transposed(const T (&from)[rows][width], To* slot, bool aligned) const {
    To* const to = slot + first_ * rows;
#pragma unroll
    for (int v = 0; v < rows; ++v) {
      T numbers[width];
#pragma unroll
      for (int c = 0; c < width; ++c) {
        const int number = v * width + c;
        numbers[c] = from[number % rows][number / rows];
      }
      if (aligned && whole()) {
        StoredNumbers<To, width> stored;
        stored.set(numbers);
        stored.store(to + v * width, true);
      } else {
#pragma unroll
        for (int c = 0; c < width; ++c) {
          if (v * width + c < count_ * rows) {
            to[v * width + c] = convert<To>(numbers[c]);
          }
        }
      }
    }
  }

 private:
  /// The output for the next input.
  __device__ void emit(const Row& input, const Row& gate, bool gated, E* output) {
    T newest[width];
    input.get(newest);
    T result[width];
#pragma unroll
    for (int c = 0; c < width; ++c) {
      result[c] = next(c, newest[c]);
    }
    if (gated) {
      T factor[width];
      gate.get(factor);
#pragma unroll
      for (int c = 0; c < width; ++c) {
        result[c] *= factor[c];
      }
    }
    Row row;
    row.set(result);
    put(output, row);
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
      emit(inputs[t], gates[t], rows.gate != nullptr, rows.output + t * rows.output_stride);
    }
  }

 protected:
  std::int64_t first_;
  int count_;
  T weights_[kernel_width][width];
  T bias_[width];
  T recent_[carried][width];  // inputs, oldest first
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
