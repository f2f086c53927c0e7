// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Arrays of a block of the backward pass, in elements of T. Those that do not fit in the shared memory of every GPU from
/// sm_80 on go to the workspace, a slice per block: first the features and their gradients, then the state.
template <class Config>
struct SimtGradientLayout {
  using T = ConfigCompute<Config>;
  using Map = typename Config::FeatureMap;
  static constexpr int columns = round_up(Config::value_dim, 4);
  static constexpr int rows = round_up(Map::feature_dim, 4);

  // An odd number of 16-byte accesses, so that a column of rows touches all banks.
  static constexpr int odd_accesses(int elements) { return elements / 4 % 2 == 1 ? elements : elements + 4; }
  static constexpr int feature_stride = odd_accesses(rows);
  static constexpr int value_stride = odd_accesses(columns);
  static constexpr int input_stride = Map::input_dim | 1;

  /// Scores inside a chunk come from q·k, or from the features of both sides at once.
  static constexpr int feature_arrays = Map::has_closed_form ? 2 : 3;

  static constexpr std::int64_t state_elements = std::int64_t{rows} * columns;
  static constexpr std::int64_t feature_elements(int chunk) { return std::int64_t{chunk} * feature_stride; }
  static constexpr std::int64_t small_elements(int chunk) {
    return 3 * std::int64_t{chunk} * value_stride + round_up(3 * chunk * input_stride, 4) +
           round_up(2 * chunk * (chunk + 1), 4) + rows + chunk;
  }

  // 1 KiB is left for what the compiler places there.
  static constexpr std::int64_t shared_limit = static_cast<std::int64_t>((shared_bytes_everywhere - 1024) / sizeof(T));
  static constexpr std::int64_t all_elements(int chunk) {
    return small_elements(chunk) + state_elements + feature_arrays * feature_elements(chunk);
  }
  static constexpr int chunk = all_elements(simt_gradient_tuning.long_chunk) <= shared_limit
                                   ? simt_gradient_tuning.long_chunk
                                   : simt_gradient_tuning.short_chunk;
  static constexpr int score_stride = chunk + 1;
  static constexpr std::int64_t feature_array = feature_elements(chunk);

  static constexpr bool features_shared = all_elements(chunk) <= shared_limit;
  static constexpr bool state_shared = small_elements(chunk) + state_elements <= shared_limit;
  static constexpr std::int64_t shared_elements = small_elements(chunk) + (state_shared ? state_elements : 0) +
                                                  (features_shared ? feature_arrays * feature_elements(chunk) : 0);
  static constexpr std::int64_t scratch_elements =
      (state_shared ? 0 : state_elements) + (features_shared ? 0 : feature_arrays * feature_elements(chunk));
  static_assert(small_elements(chunk) <= shared_limit,
                "jrt CUDA backend: one chunk of this operator's backward pass does not fit in shared memory; use a smaller "
                "input_dim, value_dim or feature_dim.");
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
