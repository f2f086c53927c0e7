// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/instructions.cuh"
#include "jrt/detail/cuda/core/sm90/numbers.cuh"
#include "jrt/detail/cuda/linear/sm90/layout.cuh"
#include "jrt/detail/integer.hpp"

namespace jrt::detail::cuda::inline JRT_DETAIL_CUDA_ABI {

/// What types of narrow range need because parts of a state are published too small, each by a power of two of its own: the
/// sums of a step are brought to the scale of the smallest part, and features that meet other parts with them.
template <class Config>
class StateFactors {
 public:
  using Numbers = HopperNumbers<typename Config::Element>;

  __device__ explicit StateFactors(int buffer) : buffer_(buffer) {
    if constexpr (Numbers::narrow_range) {
      largest_ = larger(larger(excess(0), excess(1)), larger(excess(2), excess(3)));
    }
  }
  /// Whether there is nothing to do.
  [[nodiscard]] __device__ bool none() const { return !Numbers::narrow_range || largest_ == 0; }
  /// To sums that are there already; `restored()` takes it back.
  [[nodiscard]] __device__ float of_sums() const { return __int_as_float((127 - largest_) << 23); }
  [[nodiscard]] __device__ float restored() const { return __int_as_float((127 + largest_) << 23); }
  /// To features that meet rows which warp `state_warp` has published.
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

}  // namespace jrt::detail::cuda::inline JRT_DETAIL_CUDA_ABI
