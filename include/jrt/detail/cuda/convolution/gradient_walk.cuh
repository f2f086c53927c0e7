// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/convolution/channel_walk.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/numeric.hpp"
#include "jrt/policy/activation.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The activation and its derivative on the device, with the functions of `activated`.
template <class Config, class T>
__device__ void activate_and_derive(T sum, T& value, T& derivative) {
  using Activation = typename Config::Activation;
  if constexpr (std::is_same_v<Activation, Silu>) {
    T logistic;
    if constexpr (sizeof(typename Config::Element) == 2 && std::is_same_v<T, float>) {
      logistic = __fdividef(1.0F, 1.0F + __expf(-sum));
    } else {
      logistic = T(1) / (T(1) + exp(-sum));
    }
    value = sum * logistic;
    derivative = fma(value, T(1) - logistic, logistic);
  } else {
    value = Activation::apply(sum);
    derivative = Activation::derivative(sum);
  }
}

/// a + b, which the compiler must not make part of a multiplication before it: results would depend on the width of a walk.
__device__ inline float separate_sum(float a, float b) {
  return __fadd_rn(a, b);
}
__device__ inline double separate_sum(double a, double b) {
  return __dadd_rn(a, b);
}

/// Gradients of `width` neighbouring channels of one sequence, token by token. The gradients of the last K−1 sums are in
/// registers: with the next one they complete the gradient of the input K−1 tokens before it.
template <class Config, int width>
class ChannelGradientWalk : public ChannelWalk<Config, width> {
  using Base = ChannelWalk<Config, width>;

 public:
  using Base::carried;
  using Base::kernel_width;
  using typename Base::E;
  using typename Base::Row;
  using typename Base::T;
  /// Tokens whose rows are fetched before the first is used.
  static constexpr int group = kernel_width <= 4 ? 4 : 2;

  using Base::Base;

  /// Rows of a sequence, from its first token after the padding on; null where there are none.
  struct Tokens {
    std::int64_t count = 0;
    const E* input = nullptr;
    std::int64_t input_stride = 0;
    const E* gate = nullptr;
    std::int64_t gate_stride = 0;
    const E* output_gradient = nullptr;
    std::int64_t output_gradient_stride = 0;
    E* input_gradient = nullptr;
    std::int64_t input_gradient_stride = 0;
    E* gate_gradient = nullptr;
    std::int64_t gate_gradient_stride = 0;
    const T* final_gradient = nullptr;  // of the final state

    /// From another token on.
    __device__ Tokens from(std::int64_t token) const {
      Tokens rest = *this;
      rest.count -= token;
      rest.input += token * input_stride;
      rest.gate += gate == nullptr ? 0 : token * gate_stride;
      rest.output_gradient += token * output_gradient_stride;
      rest.input_gradient += input_gradient == nullptr ? 0 : token * input_gradient_stride;
      rest.gate_gradient += gate_gradient == nullptr ? 0 : token * gate_gradient_stride;
      return rest;
    }
  };

  /// Gradients of the first `own` of these tokens, after `start` there.
  __device__ void walk(Tokens rows, int own) {
    int t = 0;
    for (; t + group <= own; t += group) {
      several<group, true>(rows, t);
    }
    for (; t < own; ++t) {
      several<1, true>(rows, t);
    }
    if (rows.input_gradient == nullptr) {
      return;
    }
    for (; t < own + carried && t < rows.count; ++t) {
      several<1, false>(rows, t);
    }
    for (; t < own + carried; ++t) {
      T input_gradients[width];
      past_the_end(rows, t, input_gradients);
      put_input_gradients(rows, t, input_gradients);
    }
  }

  /// Gradients of the K−1 inputs before these tokens, after `start` there. They may replace the final state's.
  __device__ void store_initial(const Tokens& rows, T* state, bool aligned) {
    T gradients[carried][width];
#pragma unroll
    for (int i = 0; i < carried; ++i) {
      if (i < rows.count) {
        Row gate;
        if (rows.gate != nullptr) {
          gate = this->fetch(rows.gate + i * rows.gate_stride);
        }
        T gate_gradients[width];
        next<false>(this->fetch(rows.input + i * rows.input_stride), rows.gate != nullptr, gate,
                    this->fetch(rows.output_gradient + i * rows.output_gradient_stride), gate_gradients, gradients[i]);
      } else {
        past_the_end(rows, i, gradients[i]);
      }
    }
    this->store_transposed(gradients, state, aligned);
  }
  /// The same where no state was read.
  __device__ void clear_initial(T* state, bool aligned) const {
    const T none[carried][width] = {};
    this->store_transposed(none, state, aligned);
  }

  /// Stores the sums over the tokens of a segment, of which `channels` make a row.
  __device__ void store_totals(T* to, std::int64_t channels) const {
#pragma unroll
    for (int k = 0; k <= kernel_width; ++k) {
      T* const row = to + k * channels + first_;
      if (this->whole() && channels % width == 0) {
        StoredNumbers<T, width> stored;
        stored.set(totals_[k]);
        stored.store(row, true);
      } else {
#pragma unroll
        for (int c = 0; c < width; ++c) {
          if (c < count_) {
            row[c] = totals_[k][c];
          }
        }
      }
    }
  }

 private:
  using Base::count_;
  using Base::first_;

  /// Rows t … t + tokens − 1 of a segment. `own`: their products count, and their gates' gradients are stored.
  template <int tokens, bool own>
  __device__ void several(const Tokens& rows, int first) {
    Row inputs[tokens];
    Row gates[tokens];
    Row output_gradients[tokens];
#pragma unroll
    for (int i = 0; i < tokens; ++i) {
      inputs[i] = this->fetch(rows.input + (first + i) * rows.input_stride);
      output_gradients[i] = this->fetch(rows.output_gradient + (first + i) * rows.output_gradient_stride);
    }
    if (rows.gate != nullptr) {
#pragma unroll
      for (int i = 0; i < tokens; ++i) {
        gates[i] = this->fetch(rows.gate + (first + i) * rows.gate_stride);
      }
    }
#pragma unroll
    for (int i = 0; i < tokens; ++i) {
      T gate_gradients[width];
      T input_gradients[width];
      next<own>(inputs[i], rows.gate != nullptr, gates[i], output_gradients[i], gate_gradients, input_gradients);
      if (own && rows.gate_gradient != nullptr) {
        Row stored;
        stored.set(gate_gradients);
        this->put(rows.gate_gradient + (first + i) * rows.gate_gradient_stride, stored);
      }
      put_input_gradients(rows, first + i, input_gradients);
    }
  }

  /// Stores the gradients of the inputs K−1 tokens before t, if these are the segment's.
  __device__ void put_input_gradients(const Tokens& rows, int t, const T (&gradients)[width]) const {
    if (t >= carried && rows.input_gradient != nullptr) {
      Row stored;
      stored.set(gradients);
      this->put(rows.input_gradient + (t - carried) * rows.input_gradient_stride, stored);
    }
  }

  /// One token: gradients of its gates, and of the inputs K−1 tokens before.
  template <bool own>
  __device__ void next(const Row& input, bool has_gate, const Row& gate, const Row& output_gradient,
                       T (&gate_gradients)[width], T (&input_gradients)[width]) {
    T newest[width];
    T factors[width];
    T outer[width];
    input.get(newest);
    output_gradient.get(outer);
    if (has_gate) {
      gate.get(factors);
    } else {
#pragma unroll
      for (int c = 0; c < width; ++c) {
        factors[c] = T(1);
      }
    }
#pragma unroll
    for (int c = 0; c < width; ++c) {
      T sum = this->bias_[c];
#pragma unroll
      for (int k = 0; k < carried; ++k) {
        sum = fma(this->weights_[k][c], this->recent_[k][c], sum);
      }
      sum = fma(this->weights_[carried][c], newest[c], sum);
      T value;
      T derivative;
      activate_and_derive<Config>(sum, value, derivative);
      gate_gradients[c] = outer[c] * value;
      const T sum_gradient = outer[c] * factors[c] * derivative;
      if constexpr (own) {
#pragma unroll
        for (int k = 0; k < carried; ++k) {
          totals_[k][c] = fma(sum_gradient, this->recent_[k][c], totals_[k][c]);
        }
        totals_[carried][c] = fma(sum_gradient, newest[c], totals_[carried][c]);
        totals_[kernel_width][c] = separate_sum(totals_[kernel_width][c], sum_gradient);
      }
      input_gradients[c] = completed(c, sum_gradient, T(0));
#pragma unroll
      for (int k = 0; k + 1 < carried; ++k) {
        this->recent_[k][c] = this->recent_[k + 1][c];
      }
      this->recent_[carried - 1][c] = newest[c];
    }
  }

  /// What would be token t, after the last: no sum, but the final state holds the inputs K−1 before.
  __device__ void past_the_end(const Tokens& rows, std::int64_t t, T (&input_gradients)[width]) {
#pragma unroll
    for (int c = 0; c < width; ++c) {
      const bool is_carried = rows.final_gradient != nullptr && c < count_;
      const T carried_gradient = is_carried ? rows.final_gradient[(first_ + c) * carried + (t - rows.count)] : T(0);
      input_gradients[c] = completed(c, T(0), carried_gradient);
    }
  }

  /// The gradient of the input K−1 tokens before, given that of the newest sum, which is kept.
  __device__ T completed(int c, T newest, T carried_gradient) {
    T result = fma(this->weights_[0][c], newest, carried_gradient);
#pragma unroll
    for (int k = 1; k <= carried; ++k) {
      result = fma(this->weights_[k][c], last_gradients_[carried - k][c], result);
    }
#pragma unroll
    for (int k = 0; k + 1 < carried; ++k) {
      last_gradients_[k][c] = last_gradients_[k + 1][c];
    }
    last_gradients_[carried - 1][c] = newest;
    return result;
  }

  T last_gradients_[carried][width] = {};   // of sums, oldest first
  T totals_[kernel_width + 1][width] = {};  // of dw, then of dbias
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
