// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/segment.hpp"
#include "jrt/detail/plan/token_range.hpp"

namespace jrt::detail {

/// Pieces or segments of pieces.
struct SegmentRule {
  std::int64_t (*segments)(std::int64_t tokens) = nullptr;  // of a whole sequence
  /// Of a rank's piece, by its own device, where `segments` is null; if null, too, pieces are not divided.
  std::int64_t (*of_piece)(std::int64_t tokens, std::int64_t heads_in_batch, std::int64_t workers) = nullptr;
  std::int64_t heads = 1;         // of keys and values, as far as known
  std::int64_t workers = 1;       // of the device
  std::int64_t min_segments = 1;  // below which a sequence of one rank is not divided
  std::int64_t chunk = 1;         // tokens; segments are whole chunks
  bool sums_at_once = false;      // whether one launch sums tokens and encoder tokens
  bool reads_future = false;      // whether the mask reads all tokens
  std::int64_t delay = 0;         // tokens by which a state lags behind (hybrid attention)

  /// `function(begin, end)` for every segment of a range of a sequence of `tokens` tokens.
  template <class Function>
  void for_segments(const TokenRange& piece, std::int64_t tokens, const Function& function) const {
    if (segments == nullptr) {
      if (piece.size() > 0) {
        function(piece);
      }
      return;
    }
    const std::int64_t count = clamped(tokens);
    for (std::int64_t i = 0; i < count; ++i) {
      const TokenRange whole = segment_of({0, tokens}, count, i, chunk);
      const TokenRange part{larger(whole.begin, piece.begin), smaller(whole.end, piece.end)};
      if (part.size() > 0) {
        function(part);
      }
    }
  }
  /// Segments of a whole sequence.
  [[nodiscard]] std::int64_t clamped(std::int64_t tokens) const {
    const auto chunks = larger<std::int64_t>(1, ceil_div(tokens, chunk));
    return segments == nullptr ? 1 : smaller(larger<std::int64_t>(1, segments(tokens)), chunks);
  }
};

}  // namespace jrt::detail
