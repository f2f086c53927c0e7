// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/mixer/window_attention.hpp"
#include "jrt/policy/rotary.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// What the weights of a query and their gradients need: (log Σ e^s, dy · y). A query that saw nothing has the logarithm +∞
/// here, so that its weights e^(s − ∞) are 0.
template <class T>
struct alignas(2 * sizeof(T)) WindowRowSums {
  T log_sum;
  T delta;
};

/// Tiles and shared memory of a block:
///
///     own tiles:      [64][d + 8], [64][dv + 8]                   the rows whose gradients the block writes
///     other tiles:    `stages` times the same, and 64 row sums    those that it reads, in turn
///     own row sums:   64
template <WindowConfig Config>
struct WindowBackwardLayout {
  using Element = typename Config::Element;
  using RowSums = WindowRowSums<float>;
  static constexpr int head_dim = Config::head_dim;
  static constexpr int value_dim = Config::value_dim;
  static constexpr bool supported = sizeof(Element) == 2 && head_dim % 16 == 0 && value_dim % 16 == 0 && head_dim <= 128 &&
                                    value_dim <= 128 &&
                                    (!Config::Rotary::rotates || is_rotary_halves<typename Config::Rotary>);
  static constexpr WindowBackwardTuning tuning = window_backward_tuning;
  static constexpr bool narrow = larger(head_dim, value_dim) <= 64;
  static constexpr int threads = tuning.warps * 32;
  static constexpr int tile = tuning.warps * 16;
  static constexpr int step = narrow ? tuning.narrow_step : tuning.wide_step;
  static constexpr int stages = tuning.stages;
  static constexpr std::int64_t max_tokens = INT32_MAX / 2 - Config::left_window;  // of a sequence, counted in 32 bits
  static constexpr int padding = 8;                                                // a column of rows touches all banks
  static constexpr int head_stride = head_dim + padding;
  static constexpr int value_stride = value_dim + padding;
  static constexpr int pair_elements = tile * (head_stride + value_stride);
  static constexpr int sums_offset = (1 + stages) * pair_elements;  // in elements
  static constexpr std::size_t shared_bytes = sizeof(Element) * sums_offset + sizeof(RowSums) * (1 + stages) * tile;
  static constexpr int query_blocks = narrow ? tuning.narrow_query_blocks : tuning.wide_blocks;
  static constexpr int key_blocks = narrow ? tuning.narrow_key_blocks : tuning.wide_blocks;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
