// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <cub/block/block_reduce.cuh>
#include <jrt/early_start.cuh>
#include <jrt/numeric.hpp>
#include <jrt/policy/rotary.hpp>

#include "jrt_lm/language_model.hpp"

/// The small kernels between mixers and matrix products. All are bound by memory: they move 16 bytes at a time (rows are
/// multiples of that, which CudaDevice checks), and what can be done in place is.
namespace jrt_lm {

/// 16 bytes of T.
template <class T>
struct alignas(16) Packet {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
};

inline constexpr int row_threads = 128;
inline constexpr int argmax_threads = 1024;

/// out_t = table row of token t; a block for each row.
template <class E, class Sum>
__global__ void embed_kernel(const std::int32_t* tokens, const E* table, std::int64_t width, Sum* out) {
  const std::int64_t t = blockIdx.x;
  const E* const from = table + tokens[t] * width;
  for (std::int64_t c = threadIdx.x; c < width; c += row_threads) {
    out[t * width + c] = jrt::convert<Sum>(from[c]);
  }
}

/// out_t = x_r weight / sqrt(mean of x_r² + epsilon); a block for each row, which comes from the cache the second time.
template <class E, class Sum>
__global__ void __launch_bounds__(row_threads)
    rms_norm_kernel(const Sum* x, const std::int32_t* list, std::int64_t width, const Sum* weight, Sum epsilon, E* out) {
  using P = Packet<Sum>;
  struct alignas(sizeof(E) * P::size) Narrow {
    E values[P::size];
  };
  __shared__ typename cub::BlockReduce<Sum, row_threads>::TempStorage storage;
  __shared__ Sum shared_factor;
  const std::int64_t t = blockIdx.x;
  const auto* const from = reinterpret_cast<const P*>(x + (list == nullptr ? t : list[t]) * width);
  const auto packets = static_cast<int>(width / P::size);
  Sum squares = 0;
  for (int i = threadIdx.x; i < packets; i += row_threads) {
    const P packet = from[i];
    for (int c = 0; c < P::size; ++c) {
      squares += packet.values[c] * packet.values[c];
    }
  }
  squares = cub::BlockReduce<Sum, row_threads>(storage).Sum(squares);
  if (threadIdx.x == 0) {
    shared_factor = 1 / sqrt(squares / static_cast<Sum>(width) + epsilon);
  }
  __syncthreads();
  const Sum factor = shared_factor;
  const auto* const weights = reinterpret_cast<const P*>(weight);
  auto* const to = reinterpret_cast<Narrow*>(out + t * width);
  for (int i = threadIdx.x; i < packets; i += row_threads) {
    const P packet = from[i];
    const P scale = weights[i];
    Narrow narrow;
    for (int c = 0; c < P::size; ++c) {
      narrow.values[c] = jrt::convert<E>(packet.values[c] * factor * scale.values[c]);
    }
    to[i] = narrow;
  }
}

/// Of rows [y, gate] of `packets` packets each: y ← silu(gate) y; a thread for each packet.
template <class E>
__global__ void swiglu_kernel(E* x, std::int64_t all_packets, int packets) {
  using Sum = jrt::ComputeType<E>;
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= all_packets) {
    return;
  }
  auto* const row = reinterpret_cast<Packet<E>*>(x) + i / packets * 2 * packets;
  const auto column = static_cast<int>(i % packets);
  Packet<E> y = row[column];
  const Packet<E> gate = row[packets + column];
  for (int c = 0; c < Packet<E>::size; ++c) {
    const Sum g = jrt::convert<Sum>(gate.values[c]);
    y.values[c] = jrt::convert<E>(jrt::convert<Sum>(y.values[c]) * g / (1 + exp(-g)));
  }
  row[column] = y;
}

/// Turns `heads` heads of d numbers in each row by the row's position; a block for each row. Angles are computed once for
/// all heads.
template <class E, int d>
__global__ void __launch_bounds__(row_threads)
    rotate_kernel(const __grid_constant__ jrt::RotaryHalves<d> rotary, const std::int32_t* positions, E* x,
                  std::int64_t columns, int heads) {
  jrt::await_previous_kernel();
  jrt::let_next_kernel_start();
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

/// A logit and its token.
template <class Sum>
struct Candidate {
  Sum logit;
  std::int32_t token;
};
/// The likelier of two; the first token of two that are alike.
struct Likelier {
  template <class Sum>
  __device__ Candidate<Sum> operator()(const Candidate<Sum>& a, const Candidate<Sum>& b) const {
    return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
  }
};

/// Place of the largest of the first `count` numbers of each row, the first of several; no_token for a row with a number
/// that is not finite. A block for each row.
template <class Sum>
__global__ void __launch_bounds__(argmax_threads)
    argmax_kernel(const Sum* x, std::int64_t columns, int count, std::int32_t* out) {
  jrt::await_previous_kernel();
  using Reduce = cub::BlockReduce<Candidate<Sum>, argmax_threads>;
  __shared__ typename Reduce::TempStorage storage;
  const Sum* const row = x + blockIdx.x * columns;
  Candidate<Sum> best{-INFINITY, INT32_MAX};
  bool finite = true;
  const auto look = [&](Sum logit, int i) {
    if (i < count) {
      finite &= isfinite(logit);
      best = Likelier{}(best, Candidate<Sum>{logit, i});
    }
  };
  if (columns % Packet<Sum>::size == 0) {  // then rows are whole packets, with numbers behind the last that counts
    const auto* const packets = reinterpret_cast<const Packet<Sum>*>(row);
    const int last = (count - 1) / Packet<Sum>::size;
#pragma unroll 8
    for (int p = threadIdx.x; p <= last; p += argmax_threads) {
      const Packet<Sum> packet = packets[p];
      for (int c = 0; c < Packet<Sum>::size; ++c) {
        look(packet.values[c], p * Packet<Sum>::size + c);
      }
    }
  } else {
    for (int i = threadIdx.x; i < count; i += argmax_threads) {
      look(row[i], i);
    }
  }
  best = Reduce(storage).Reduce(best, Likelier{});
  finite = __syncthreads_and(static_cast<int>(finite)) != 0;
  if (threadIdx.x == 0) {
    out[blockIdx.x] = finite ? best.token : no_token;
  }
}

/// The likeliest tokens become the next step's, one position on. Where there is no_token, the history says so and steps go
/// on with some token of the vocabulary: the host looks at the history after them.
template <class Index>  // so that it may be in several translation units
__global__ void advance_kernel(const std::int32_t* likeliest, std::int32_t* tokens, std::int32_t* positions,
                               std::int32_t* history, Index rows) {
  const auto t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (t < rows) {
    history[t] = likeliest[t];
    tokens[t] = max(likeliest[t], 0);
    ++positions[t];
  }
}

/// Of each sequence of `count` tokens: the first counts, and those behind it that are the likeliest after the one before.
template <class Index>  // so that it may be in several translation units
__global__ void accept_kernel(const std::int32_t* tokens, const std::int32_t* likeliest, Index sequences, Index count,
                              std::int32_t* accepted) {
  const auto b = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (b < sequences) {
    Index t = 1;
    while (t < count && tokens[b * count + t] == likeliest[b * count + t - 1]) {
      ++t;
    }
    accepted[b] = t;
  }
}

}  // namespace jrt_lm
