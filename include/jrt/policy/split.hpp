// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/detail/integer.hpp"

namespace jrt {

/// Policy: into how many segments a sequence is split so that one sequence can occupy many workers (threads or blocks).
/// Segment sums are formed first and added up in order; then the outputs of each segment are computed from its incoming
/// state.
///
/// Requires:   `static std::int64_t segments(tokens, heads_in_batch, workers)`: the segments for a sequence of `tokens`
///             tokens, where `heads_in_batch` is sequences x key/value heads and `workers` is how many the backend can keep
///             busy (threads of the executor; blocks that a GPU holds); at least 1, and non-decreasing in `tokens`. For the
///             CUDA backend callable on host and device. A backend may use fewer, by rules that preserve the guarantee
///             below.
/// Guarantees: results are the same from run to run. They are bitwise the same in any batch if the result depends on
///             `tokens` alone.
/// Optional:   `static constexpr bool depends_on_tokens_alone = true`, a promise by which context-parallel calls
///             (distributed/) keep the segments of the whole sequence, for the same results on any number of ranks.
/// Cost:       more than one segment costs a second pass over the keys and values, and workspace for one state per segment
///             and head.
/// Default:    `OccupancySplit`.
/// Tested by:  tests/policy/split_test.cpp, tests/laws_test.cpp
template <class S>
concept Split = requires(std::int64_t n) {
  { S::segments(n, n, n) } -> std::same_as<std::int64_t>;
};

/// workers / heads segments, on average not shorter than `MinimumTokens` (segments are whole chunks). A sequence is not
/// split while the batch has more heads than half of the workers, because a split sequence is read twice. The split, and
/// with it the last bits of the result, depends on the batch.
template <std::int64_t MinimumTokens = 256>
struct OccupancySplit {
  static_assert(MinimumTokens > 0, "OccupancySplit: MinimumTokens must be at least 1 token per segment.");

  JRT_DETAIL_HD static constexpr std::int64_t segments(std::int64_t tokens, std::int64_t heads_in_batch,
                                                       std::int64_t workers) {
    const std::int64_t wanted = workers / detail::larger<std::int64_t>(heads_in_batch, 1);
    return detail::larger<std::int64_t>(1, detail::smaller(wanted, tokens / MinimumTokens));
  }
};

/// Batch-invariant: one segment for each `SegmentTokens` tokens, whatever else is in the batch and however many workers
/// there are, so that a sequence gives bitwise the same result in any batch.
template <std::int64_t SegmentTokens = 4096>
struct LengthSplit {
  static_assert(SegmentTokens > 0, "LengthSplit: SegmentTokens must be at least 1 token per segment.");
  static constexpr bool depends_on_tokens_alone = true;

  JRT_DETAIL_HD static constexpr std::int64_t segments(std::int64_t tokens, std::int64_t /*heads_in_batch*/,
                                                       std::int64_t /*workers*/) {
    return detail::larger<std::int64_t>(1, detail::ceil_div(tokens, SegmentTokens));
  }
};

}  // namespace jrt
