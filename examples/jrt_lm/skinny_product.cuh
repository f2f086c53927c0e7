// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <jrt/early_start.cuh>
#include <jrt/numeric.hpp>
#include <type_traits>

#include "jrt_lm/cuda_kernels.cuh"
#include "jrt_lm/early_start.cuh"

/// Matrix products of a decode step: few rows x (one for each sequence, at most 16), so that reading W once is all that
/// counts. The norm before a product and the addition or gate behind it are part of it: a step has half as many kernels.
///
///     a block: 8 outputs (8 rows of W)          a warp: every eighth chunk of 32 columns, mma.m16n8k16
///
///                 k  0    32    64  …                  left operand   x, 16 rows (those there are), 16 k
///       x   row 0   [w0 | w1 | w2 | … | w7 | w0 | …    right operand  W, 16 k, 8 outputs
///           …                                          sums           16 rows x 8 outputs, in registers
///       W   out 0   [w0 | w1 | w2 | … | w7 | w0 | …
///           …                                          then the 8 warps' sums are added up in shared memory
///
/// Every lane loads 16 bytes of a row, which are not the k that the instruction's layout gives it; but a sum over k has no
/// order, as long as both operands have the same one. Nothing is read twice within a block, so nothing is staged.
namespace jrt_lm {

inline constexpr int skinny_rows = 16;
inline constexpr int skinny_outputs = 8;
inline constexpr int skinny_chunk = 32;
inline constexpr int skinny_warps = 8;

/// The types that the matrix unit multiplies; others have no such product.
template <class E>
inline constexpr bool has_skinny_product = std::is_same_v<E, jrt::Half> || std::is_same_v<E, jrt::BFloat16>;

/// Those for which the norm can be part of it: x weight is rounded before it is divided, for which half has no range.
template <class E>
inline constexpr bool has_skinny_norm = std::is_same_v<E, jrt::BFloat16>;

/// What becomes of a product.
enum class SkinnyOutput {
  stores,  ///< y = …
  adds,    ///< y += …
  gates,   ///< W has twice as many rows: y = silu(gate) value, of the first half (values) and the second (gates)
  passes,  ///< W has twice as many rows, in pairs: what is behind the product says which, and makes y of them
};

/// sums += x W over 16 k (PTX ISA, "mma.sync.m16n8k16").
template <class E>
__device__ void multiply_fragments(float (&sums)[4], const std::uint32_t (&x)[4], std::uint32_t w0, std::uint32_t w1) {
  if constexpr (std::is_same_v<E, jrt::BFloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(w0), "r"(w1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(w0), "r"(w1));
  }
}

/// Where the rows of x come from: 8 numbers from column `k` on of row `row`, first as they are in memory, then as pairs of
/// E.
template <class E>
struct SkinnyActivations {
  static constexpr bool normalises = false;
  const E* x;
  int columns;  ///< from a row to the next

  using Stored = uint4;
  __device__ Stored load(int row, int k) const { return *reinterpret_cast<const uint4*>(x + row * columns + k); }
  __device__ uint4 pairs(const Stored& stored, const float* /*scales*/, float& /*squares*/) const { return stored; }
};

/// The same from the residual stream: x_r weight, while the squares of x_r are summed up. That the product is divided by
/// their mean is left to the end.
template <class E>
struct SkinnyResidual {
  static constexpr bool normalises = true;
  const float* x;
  int columns;
  const float* weight;
  float epsilon;

  struct Stored {
    Packet<float> halves[2];
  };
  __device__ Stored load(int row, int k) const {
    const auto* const from = reinterpret_cast<const Packet<float>*>(x + row * columns + k);
    return {from[0], from[1]};
  }
  /// `scales`: the weight from column `k` on.
  __device__ uint4 pairs(const Stored& stored, const float* scales, float& squares) const {
    Packet<E> packet;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto scale = *reinterpret_cast<const Packet<float>*>(scales + 4 * half);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float number = stored.halves[half].values[c];
        squares += number * number;
        packet.values[4 * half + c] = jrt::convert<E>(number * scale.values[c]);
      }
    }
    return __builtin_bit_cast(uint4, packet);
  }
};

/// Blocks that a multiprocessor has registers for: enough that the widest product of the 360M model is one wave of them.
/// The next kernel can start early only when all blocks of this one have.
template <SkinnyOutput what>
inline constexpr int skinny_blocks = what == SkinnyOutput::stores ? 4
                                     : what == SkinnyOutput::adds ? 3
                                                                  : 2;

/// Chunks of a warp whose rows of x are on their way at the same time, as many as there are registers for.
template <SkinnyOutput what, int halves>
inline constexpr int skinny_together = what == SkinnyOutput::adds     ? 8 / halves
                                       : what == SkinnyOutput::stores ? (halves == 1 ? 4 : 1)
                                                                      : 4 / halves;

/// Floats of dynamic shared memory: the norm's weight.
template <class Input>
std::size_t skinny_shared_bytes(std::int64_t in) {
  return Input::normalises ? static_cast<std::size_t>(in) * sizeof(float) : 0;
}

extern __shared__ __align__(16) float skinny_scales[];

/// What is behind a product whose output is y.
struct NothingBehind {};

/// y (rows, outputs) = x Wᵀ + bias, as `what` says; a block for 8 outputs. `in` is a multiple of 32, `outputs` of 8, and
/// there are at most 8 * `halves` rows. All that is read is on its way before the first of it is needed; what no kernel of
/// this step writes, before the kernel that writes x is over. A row's sums do not depend on the other rows.
template <SkinnyOutput what, int halves, class E, class Input, class Out, class Behind>
__global__ void __launch_bounds__(32 * skinny_warps, skinny_blocks<what>)
    skinny_product_kernel(const Input input, int rows, int in, const E* weight, const Out* bias, int outputs, Out* y,
                          int y_columns, const __grid_constant__ Behind behind) {
  constexpr bool passes = what == SkinnyOutput::passes;
  constexpr int tiles = what == SkinnyOutput::gates || passes ? 2 : 1;
  __shared__ float partial[skinny_warps][tiles][8 * halves][skinny_outputs];
  __shared__ float partial_squares[skinny_warps][8 * halves];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int c = lane % 4;
  // Outputs of a block, and how far those of the second tile are behind those of the first.
  int first_output = static_cast<int>(blockIdx.x) * skinny_outputs;
  int tile_stride = outputs;
  if constexpr (passes) {
    behind.place(static_cast<int>(blockIdx.x), first_output, tile_stride);
  }
  const E* const own_weight = weight + std::int64_t{first_output + g} * in + 8 * c;
  const int chunks = in / skinny_chunk;
  // Weights are always this many chunks ahead.
  constexpr int ahead = Input::normalises ? 4 : 8;
  constexpr int together = skinny_together<what, halves>;
  static_assert(ahead % together == 0);
  uint4 w[ahead][tiles] = {};
  const auto load_weight = [&](int chunk, uint4(&to)[tiles]) {
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      if (chunk < chunks) {
        // Each once in a step and never again.
        to[tile] = __ldcs(
            reinterpret_cast<const uint4*>(own_weight + std::int64_t{tile * tile_stride} * in + chunk * skinny_chunk));
      }
    }
  };
#pragma unroll
  for (int i = 0; i < ahead; ++i) {
    load_weight(warp + i * skinny_warps, w[i]);
  }
  jrt::let_next_kernel_start();
  // The output that a thread will write.
  const int row = static_cast<int>(threadIdx.x) / skinny_outputs;
  const int output = first_output + static_cast<int>(threadIdx.x) % skinny_outputs;
  Out own_bias[tiles] = {};
  if (bias != nullptr && row < rows) {
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      own_bias[tile] = bias[tile * tile_stride + output];
    }
  }
  if constexpr (Input::normalises) {
#pragma unroll 1
    for (int k = 4 * static_cast<int>(threadIdx.x); k < in; k += 4 * 32 * skinny_warps) {
      *reinterpret_cast<Packet<float>*>(skinny_scales + k) = *reinterpret_cast<const Packet<float>*>(input.weight + k);
    }
    __syncthreads();
  }
  [[maybe_unused]] auto own_behind = [&] {
    if constexpr (passes) {
      return behind.prepare(first_output);
    } else {
      return NothingBehind{};
    }
  }();
  jrt::await_previous_kernel();
  if constexpr (passes) {
    behind.load(own_behind, first_output);
  }
  Out* const to = y + std::int64_t{row} * y_columns + output;
  Out before{};
  if (what == SkinnyOutput::adds && row < rows) {
    before = *to;
  }
  float sums[tiles][4] = {};
  float squares[halves] = {};
  for (int first = warp; first < chunks; first += ahead * skinny_warps) {
#pragma unroll
    for (int part = 0; part < ahead; part += together) {
      // Without a branch, or they would wait for one another: rows and chunks that do not exist are others once more.
      typename Input::Stored stored[together][halves];
#pragma unroll
      for (int i = 0; i < together; ++i) {
        const int k = min(first + (part + i) * skinny_warps, chunks - 1) * skinny_chunk + 8 * c;
#pragma unroll
        for (int half = 0; half < halves; ++half) {
          stored[i][half] = input.load(min(g + 8 * half, rows - 1), k);
        }
      }
#pragma unroll
      for (int i = 0; i < together; ++i) {
        const int chunk = first + (part + i) * skinny_warps;
        if (chunk < chunks) {
          uint4 x[2] = {};
#pragma unroll
          for (int half = 0; half < halves; ++half) {
            x[half] = input.pairs(stored[i][half], skinny_scales + chunk * skinny_chunk + 8 * c, squares[half]);
          }
          const std::uint32_t low[4] = {x[0].x, x[1].x, x[0].y, x[1].y};
          const std::uint32_t high[4] = {x[0].z, x[1].z, x[0].w, x[1].w};
#pragma unroll
          for (int tile = 0; tile < tiles; ++tile) {
            multiply_fragments<E>(sums[tile], low, w[part + i][tile].x, w[part + i][tile].y);
            multiply_fragments<E>(sums[tile], high, w[part + i][tile].z, w[part + i][tile].w);
          }
          load_weight(chunk + ahead * skinny_warps, w[part + i]);
        }
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int half = 0; half < halves; ++half) {
      partial[warp][tile][g + 8 * half][2 * c] = sums[tile][2 * half];
      partial[warp][tile][g + 8 * half][2 * c + 1] = sums[tile][2 * half + 1];
    }
  }
  if constexpr (Input::normalises) {
#pragma unroll
    for (int half = 0; half < halves; ++half) {
      squares[half] += __shfl_xor_sync(~0U, squares[half], 1);
      squares[half] += __shfl_xor_sync(~0U, squares[half], 2);
      if (c == 0) {
        partial_squares[warp][g + 8 * half] = squares[half];
      }
    }
  }
  __syncthreads();
  if (!passes && row >= rows) {
    return;
  }
  const int column = output - first_output;
  float total[tiles] = {};
  if (row < rows) {
    float factor = 1;
    if constexpr (Input::normalises) {
      float all = 0;
      for (int w = 0; w < skinny_warps; ++w) {
        all += partial_squares[w][row];
      }
      factor = 1 / sqrtf(all / static_cast<float>(in) + input.epsilon);
    }
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      for (int w = 0; w < skinny_warps; ++w) {
        total[tile] += partial[w][tile][row][column];
      }
      total[tile] *= factor;
      if (bias != nullptr) {
        total[tile] += jrt::convert<float>(own_bias[tile]);
      }
    }
  }
  if constexpr (what == SkinnyOutput::stores) {
    *to = jrt::convert<Out>(total[0]);
  } else if constexpr (what == SkinnyOutput::adds) {
    *to = jrt::convert<Out>(jrt::convert<float>(before) + total[0]);
  } else if constexpr (what == SkinnyOutput::gates) {
    *to = jrt::convert<Out>(total[0] * total[1] / (1 + expf(-total[1])));
  } else {
    __shared__ Out passed[8 * halves][2][skinny_outputs];
    if (row < rows) {
      passed[row][0][column] = jrt::convert<Out>(total[0]);
      passed[row][1][column] = jrt::convert<Out>(total[1]);
    }
    __syncthreads();
    behind.run(own_behind, first_output, passed, y, y_columns);
  }
}

/// Whether there is such a product.
inline bool is_skinny(std::int64_t rows, std::int64_t in, std::int64_t outputs) {
  return rows <= skinny_rows && in % skinny_chunk == 0 && outputs % skinny_outputs == 0;
}
/// The same with a norm before it: 32 KiB of its weight and the sums are what a kernel may have without asking for more.
inline bool is_normed_skinny(std::int64_t rows, std::int64_t in, std::int64_t outputs) {
  return is_skinny(rows, in, outputs) && in <= 8192;
}

template <SkinnyOutput what, class E, class Input, class Out, class Behind = NothingBehind>
cudaError_t launch_skinny_product(const Input& input, std::int64_t rows, std::int64_t in, const E* weight, const Out* bias,
                                  std::int64_t outputs, Out* y, std::int64_t y_columns, cudaStream_t stream,
                                  const Behind& behind = {}) {
  const auto kernel = rows <= 8 ? skinny_product_kernel<what, 1, E, Input, Out, Behind>
                                : skinny_product_kernel<what, 2, E, Input, Out, Behind>;
  return launch_early(kernel, outputs / skinny_outputs, 32 * skinny_warps, skinny_shared_bytes<Input>(in), stream, input,
                      rows, in, weight, bias, outputs, y, y_columns, behind);
}

}  // namespace jrt_lm
