// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/tensor_view.hpp"

/// Descriptions of tensors for the copy engine, TMA (CUDA driver API, "Tensor Map Object Management").
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The part of a tensor that one copy moves.
struct TensorBox {
  int tokens = 0;
  int columns = 0;
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_NONE;
};

/// The driver's encoder, found through the runtime so that programs need not link the driver; null if it has none.
inline auto tensor_map_encoder() {
  using Encoder = decltype(&cuTensorMapEncodeTiled);
  static std::atomic<Encoder> known = nullptr;  // a failed lookup is not cached
  if (known == nullptr) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    if (error != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
    } else if (found == cudaDriverEntryPointSuccess) {
      known = reinterpret_cast<Encoder>(function);
    }
  }
  return known.load();
}

/// Describes a view to the copy engine; false if the copy engine cannot read it: rows must be aligned to 16 bytes and
/// multiples of 16 bytes apart, with positive strides. An empty view needs no description.
template <class Element>
bool describe(const TensorView<Element>& view, const TensorBox& box, CUtensorMap& map) {
  static_assert(sizeof(Element) == 2);
  if (view.batch == 0 || view.tokens == 0 || view.heads == 0) {
    return true;
  }
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(view.dim), static_cast<cuuint64_t>(view.tokens),
                                static_cast<cuuint64_t>(view.heads), static_cast<cuuint64_t>(view.batch)};
  for (const cuuint64_t extent : extents) {
    if (extent > INT32_MAX - 64) {  // coordinates have 32 bits, and a box may reach beyond the end
      return false;
    }
  }
  const std::int64_t strides_in_elements[] = {view.token_stride, view.head_stride, view.batch_stride};
  cuuint64_t strides[3] = {};
  for (int i = 0; i < 3; ++i) {
    // The stride of a dimension of extent 1 may have any value.
    const std::int64_t stride =
        extents[i + 1] == 1 ? 16 : strides_in_elements[i] * static_cast<std::int64_t>(sizeof(Element));
    if (stride <= 0 || stride % 16 != 0 || stride >= std::int64_t{1} << 40) {
      return false;
    }
    strides[i] = static_cast<cuuint64_t>(stride);
  }
  const auto encoder = tensor_map_encoder();
  if (encoder == nullptr || reinterpret_cast<std::uintptr_t>(view.data) % 16 != 0) {
    return false;
  }
  const cuuint32_t sizes[] = {static_cast<cuuint32_t>(box.columns), static_cast<cuuint32_t>(box.tokens), 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  auto* const data = const_cast<void*>(static_cast<const void*>(view.data));
  return encoder(&map, HopperNumbers<std::remove_const_t<Element>>::tensor_map_type, 4, data, extents, strides, sizes,
                 steps, CU_TENSOR_MAP_INTERLEAVE_NONE, box.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
