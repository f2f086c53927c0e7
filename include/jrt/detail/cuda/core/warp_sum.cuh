// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Σ value over each group of `lanes` neighbouring lanes, a power of two, in the first of them; what the others get means
/// nothing. All lanes of the warp take part. Four lines here instead of cub::WarpReduce: that header takes longer to
/// compile than the kernels that add up.
template <int lanes, class T>
__device__ T warp_sum(T value) {
#pragma unroll
  for (int distance = 1; distance < lanes; distance *= 2) {
    value += __shfl_down_sync(~0u, value, distance, lanes);
  }
  return value;
}

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
