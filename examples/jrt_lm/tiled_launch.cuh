// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <jrt/detail/cuda/core/sm90/target.cuh>

#include "jrt_lm/matrix_map.hpp"
#include "jrt_lm/tiled_product.cuh"

namespace jrt_lm {

/// A tiled product by its memory. Rows of x, y and the stream are so many numbers apart; W is contiguous.
struct TiledOperands {
  const jrt::BFloat16* x = nullptr;
  std::int64_t x_columns = 0;
  const jrt::BFloat16* weight = nullptr;
  const void* bias = nullptr;
  std::int64_t rows = 0;
  std::int64_t in = 0;
  std::int64_t outputs = 0;  ///< gates are not counted
  jrt::BFloat16* y = nullptr;
  std::int64_t y_columns = 0;
  float* stream = nullptr;
  std::int64_t stream_columns = 0;
  const float* squares = nullptr;
  std::int64_t square_parts = 0;
  float epsilon = 0;
  const float* norm_weight = nullptr;
  float* new_squares = nullptr;
  // Of `convolves`, as in TiledJob:
  const jrt::BFloat16* filter = nullptr;
  const jrt::BFloat16* filter_bias = nullptr;
  jrt::BFloat16* edges = nullptr;
  jrt::BFloat16* last_inputs = nullptr;
  const std::int32_t* row_count = nullptr;
  // Of `rotates`, likewise:
  const jrt::RotaryHalves<64>* rotary = nullptr;
  const std::int32_t* positions = nullptr;
  std::int64_t turned_heads = 0;
};

/// Whether each of a tile's blocks has a part of the depth.
template <class T>
[[nodiscard]] bool has_depth(const TiledOperands& of) {
  return of.in > (T::splits - 1) * tile_depth;
}

/// Launches one kernel; cudaErrorInvalidValue if the copy engine cannot read the operands, or without `has_depth`.
template <class T>
cudaError_t launch_tiled(const TiledOperands& of, int multiprocessors, cudaStream_t stream) {
  TiledJob job{};
  const std::int64_t weight_rows = has_gates<T::finish> ? 2 * of.outputs : of.outputs;
  bool described = has_depth<T>(of) && describe_matrix(of.x, of.rows, of.in, of.x_columns, tile_rows, job.x) &&
                   describe_matrix(of.weight, weight_rows, of.in, of.in, T::columns / 2, job.weight);
  if (described && of.y != nullptr) {
    described = describe_matrix(of.y, of.rows, of.outputs, of.y_columns, 16, job.y);
  }
  if (described && T::finish == Finish::adds) {
    described = describe_matrix(of.stream, of.rows, of.outputs, of.stream_columns, 16, job.stream);
  }
  if (!described) {
    return cudaErrorInvalidValue;
  }
  job.rows = static_cast<int>(of.rows);
  job.in = static_cast<int>(of.in);
  job.outputs = static_cast<int>(of.outputs);
  job.bias = of.bias;
  job.squares = of.squares;
  job.square_parts = static_cast<int>(of.square_parts);
  job.per_width = 1.0F / static_cast<float>(of.in);
  job.epsilon = of.epsilon;
  job.norm_weight = of.norm_weight;
  job.new_squares = of.new_squares;
  job.filter = of.filter;
  job.filter_bias = of.filter_bias;
  job.edges = of.edges;
  job.last_inputs = of.last_inputs;
  job.row_count = of.row_count;
  for (int i = 0; i < 32 && of.rotary != nullptr; ++i) {
    job.turns[i] = of.rotary->phase(1, i);
  }
  job.positions = of.positions;
  job.turned_heads = static_cast<int>(of.turned_heads);
  const auto kernel = tiled_product_kernel<T>;
  if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::shared_bytes);
      error != cudaSuccess) {
    return error;
  }
  const auto divided = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const std::int64_t tiles = divided(of.rows, tile_rows) * divided(of.outputs, T::outputs);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {T::splits, 1, 1};
  cudaLaunchConfig_t config{};
  const std::int64_t at_once = T::splits > 1 ? tiles : std::min<std::int64_t>(tiles, multiprocessors);
  config.gridDim = dim3(static_cast<unsigned>(at_once * T::splits));
  config.blockDim = dim3(tiled_threads);
  config.dynamicSmemBytes = T::shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = T::splits > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, job);
}

}  // namespace jrt_lm
