// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstdint>
#include <jrt/detail/cuda/core/sm90/tensor_map.cuh>
#include <jrt/numeric.hpp>
#include <type_traits>

namespace jrt_lm {

/// Describes a matrix to the copy engine, which moves boxes of it: columns of 128 bytes, swizzled. What of a box is outside
/// the matrix is read as zero and not written. False if it cannot: rows must begin at multiples of 16 bytes.
template <class T>
bool describe_matrix(const T* data, std::int64_t rows, std::int64_t columns, std::int64_t row_stride, int box_rows,
                     CUtensorMap& map) {
  static_assert(std::is_same_v<T, jrt::BFloat16> || std::is_same_v<T, float>);
  constexpr auto size = static_cast<std::int64_t>(sizeof(T));
  const auto encoder = jrt::detail::cuda::tensor_map_encoder();
  if (encoder == nullptr || reinterpret_cast<std::uintptr_t>(data) % 16 != 0 || row_stride * size % 16 != 0 ||
      rows > INT32_MAX - 256 || columns > INT32_MAX - 256) {
    return false;
  }
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(row_stride * size)};
  const cuuint32_t sizes[] = {static_cast<cuuint32_t>(128 / size), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  return encoder(&map, size == 4 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
                 const_cast<void*>(static_cast<const void*>(data)), extents, strides, sizes, steps,
                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace jrt_lm
