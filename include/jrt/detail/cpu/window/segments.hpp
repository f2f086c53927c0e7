// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/mixer/window_attention.hpp"
#include "jrt/sequences.hpp"

/// The runs of tokens that are tasks of window attention and of its backward pass.
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Tokens of a segment: whole panels, and many times the window, whose keys each segment has to read again.
template <WindowConfig Config>
inline constexpr std::int64_t window_segment_tokens =
    round_up(larger<std::int64_t>(min_window_segment_tokens, 4 * Config::left_window), panel_keys);

/// Segments of the call's longest sequence, at least 1.
template <WindowConfig Config, class Call>
std::int64_t max_window_segments(const Call& call) {
  std::int64_t segments = 1;
  for (std::int64_t b = 0; b < call.count(); ++b) {
    const SequenceSpan span = call.span(b);
    segments = larger(segments, ceil_div(span.tokens - span.left_pad, window_segment_tokens<Config>));
  }
  return segments;
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
