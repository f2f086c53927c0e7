// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <jrt/cuda/gated_convolution.cuh>
#include <jrt/cuda/linear_attention.cuh>
#include <jrt/cuda/window_attention.cuh>
#include <jrt/execution/cuda.cuh>
#include <jrt/numeric.hpp>
#include <jrt/policy/rotary.hpp>

#include "jrt_lm/check_cuda.hpp"
#include "jrt_lm/compiled_mixers.hpp"
#include "jrt_lm/cuda_packet.cuh"

namespace jrt_lm {

/// Turns `heads` heads of d numbers in each row by the row's position; a block for each row. Angles are computed once for
/// all heads.
template <class E, int d>
__global__ void __launch_bounds__(row_threads)
    rotate_kernel(const __grid_constant__ jrt::RotaryHalves<d> rotary, const std::int32_t* positions, E* x,
                  std::int64_t columns, int heads) {
  using Sum = jrt::ComputeType<E>;
  using P = Packet<E>;
  constexpr int half = d / 2;
  constexpr int packets = half / P::size;  // of half a head
  static_assert(half % P::size == 0, "jrt_lm: half a head must be whole packets of 16 bytes.");
  __shared__ jrt::Rotation<Sum> turns[half];
  const std::int64_t t = blockIdx.x;
  for (int i = threadIdx.x; i < half; i += row_threads) {
    turns[i] = rotary.template rotation<Sum>(positions[t], i);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * packets; i += row_threads) {
    const int packet = i % packets;
    auto* const head = reinterpret_cast<P*>(x + t * columns + std::int64_t{i / packets} * d);
    P low = head[packet];
    P high = head[packets + packet];
    for (int c = 0; c < P::size; ++c) {
      const jrt::Rotation<Sum> turn = turns[packet * P::size + c];
      const Sum a = jrt::convert<Sum>(low.values[c]);
      const Sum b = jrt::convert<Sum>(high.values[c]);
      low.values[c] = jrt::convert<E>(a * turn.cosine - b * turn.sine);
      high.values[c] = jrt::convert<E>(a * turn.sine + b * turn.cosine);
    }
    head[packet] = low;
    head[packets + packet] = high;
  }
}

/// Mixers and rotation on a GPU.
struct CudaBackend {
  using Execution = jrt::Cuda;

  template <class E, int d>
  static void rotate(const jrt::RotaryHalves<d>& rotary, const std::int32_t* positions, std::int64_t rows, E* x,
                     std::int64_t columns, std::int64_t heads, const Execution& on) {
    rotate_kernel<<<static_cast<unsigned>(rows), row_threads, 0, on.stream()>>>(rotary, positions, x, columns,
                                                                                static_cast<int>(heads));
    check_cuda(cudaGetLastError(), "launch");
  }
};

}  // namespace jrt_lm
