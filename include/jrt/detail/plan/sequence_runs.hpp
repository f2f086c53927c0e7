// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/host_device.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/sequences.hpp"

/// How blocks or threads share the rows of a batch whose lengths may be in device memory alone: in runs of equal length.
///
///     dense, T = 5, runs of 2        packed, lengths 3 and 5, runs of 2
///     b:   0 0 0 1 1 1               b:   0 0 1 1 1 (1)        the last run is empty
///     row: 0 2 4 0 2 4               row: 0 2 0 2 4 (6)
namespace jrt::detail {

/// Runs of `run` rows that cover all sequences; a few more for packed ones.
constexpr std::int64_t row_runs(const Sequences& sequences, std::int64_t batch, std::int64_t tokens, std::int64_t run) {
  return sequences.cu_seqlens != nullptr ? tokens / run + sequences.count : ceil_div(tokens, run) * batch;
}

/// Sequence and first row of a run. Packed sequence b has the runs from floor(cu_seqlens[b] / run) + b on: enough for its
/// rows, without a scan over lengths, since floor((a + n)/S) − floor(a/S) + 1 >= ceil(n/S).
struct RowRun {
  std::int64_t b = 0;
  std::int64_t first_row = 0;

  JRT_DETAIL_HD constexpr RowRun(const Sequences& sequences, std::int64_t tokens, std::int64_t index, std::int64_t run) {
    if (sequences.cu_seqlens == nullptr) {
      const std::int64_t each = ceil_div(tokens, run);
      b = index / each;
      first_row = index % each * run;
      return;
    }
    const auto first_run = [&](std::int64_t sequence) {
      return clamped(sequences.cu_seqlens[sequence], 0, tokens) / run + sequence;
    };
    for (std::int64_t end = sequences.count; end - b > 1;) {
      const std::int64_t middle = (b + end) / 2;
      (first_run(middle) <= index ? b : end) = middle;
    }
    first_row = (index - first_run(b)) * run;
  }

  /// Whether the run has rows of the sequence: not for surplus runs, nor where offsets decrease.
  [[nodiscard]] JRT_DETAIL_HD constexpr bool within(const SequenceSpan& span) const {
    return first_row >= 0 && first_row < span.row_tokens;
  }
};

}  // namespace jrt::detail
