// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/query.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/window/keys.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Shared memory and threads of the decode step's blocks; of `part_threads` threads, where they are part of another kernel.
template <WindowConfig Config, int part_threads = 0>
struct WindowStepLayout {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  static constexpr int each = access_bytes / static_cast<int>(sizeof(Element));
  static constexpr std::int64_t queries = round_up<std::int64_t>(Format::count_offset, each);

  static constexpr WindowStepTuning tuning = window_step_tuning;
  JRT_DETAIL_HD static constexpr std::int64_t buffer_bytes(std::int64_t group) {
    return (queries + group * Config::head_dim) * static_cast<std::int64_t>(sizeof(Element));
  }
  /// What is merged across warps: a largest score, a sum and values each.
  JRT_DETAIL_HD static constexpr std::int64_t sum_bytes(int of_threads) {
    return of_threads / 32 * (Config::value_dim + 2) * static_cast<std::int64_t>(sizeof(ComputeType<Element>));
  }
  static constexpr int blocks = static_cast<int>(clamped(
      tuning.multiprocessor_bytes / (2 * buffer_bytes(1) + sum_bytes(tuning.many_blocks_threads)), 1, tuning.max_blocks));
  static constexpr int threads = part_threads > 0               ? part_threads
                                 : blocks >= tuning.many_blocks ? tuning.many_blocks_threads
                                                                : tuning.few_blocks_threads;
  /// Two buffers, then what is merged across warps.
  JRT_DETAIL_HD static constexpr std::int64_t shared_bytes(std::int64_t group) {
    return 2 * buffer_bytes(group) + sum_bytes(threads);
  }
  /// Rows of whole accesses, room for two copies in a block, no softmax carry-in.
  static constexpr bool supported = !has_softmax_carry_in<Config> && Config::head_dim % each == 0 &&
                                    Config::value_dim % each == 0 && shared_bytes(1) <= tuning.block_bytes;

  using Query = QueryLayout<Config>;  // how lanes share a key
  static constexpr int warps = threads / 32;
  static constexpr int groups = threads / Query::lanes;
  static constexpr int rounds = smaller(tuning.max_rounds, ceil_div(Format::rows, groups));  // keys of a group at a time
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
