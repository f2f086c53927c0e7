// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/instructions.cuh"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/linear/sm90/layout.cuh"
#include "jrt/detail/integer.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Rescaling for element types of narrow range, since each state warp may scale its rows down when publishing them, by a
/// power of two of its own: the sums of a step are brought to the scale of the smallest rows, and so are features that
/// multiply other rows.
template <class Config>
class StateFactors {
 public:
  using Numbers = HopperNumbers<typename Config::Element>;

  __device__ explicit StateFactors(int buffer) : buffer_(buffer) {
    if constexpr (Numbers::narrow_range) {
      largest_ = larger(larger(excess(0), excess(1)), larger(excess(2), excess(3)));
    }
  }
  /// Whether nothing is scaled.
  [[nodiscard]] __device__ bool none() const { return !Numbers::narrow_range || largest_ == 0; }
  /// Factor of sums formed before; `restored()` undoes it.
  [[nodiscard]] __device__ float of_sums() const { return __int_as_float((127 - largest_) << 23); }
  [[nodiscard]] __device__ float restored() const { return __int_as_float((127 + largest_) << 23); }
  /// Scales features that multiply rows published by warp `state_warp`.
  __device__ void apply(LeftFragment& features, int state_warp) const {
    if (!none()) {
      const Pair factor = Numbers::power_of_two(excess(state_warp) - largest_);
#pragma unroll
      for (Pair& pair : features.pairs) {
        pair = Numbers::product(pair, factor);
      }
    }
  }

 private:
  [[nodiscard]] __device__ int excess(int state_warp) const {
    return static_cast<int>(load_pair(HopperLayout<Config>::state_excess + 16 * buffer_ + 4 * state_warp));
  }

  int buffer_;
  int largest_ = 0;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
