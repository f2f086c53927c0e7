// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/distributed/segment_rule.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/segment.hpp"
#include "jrt/detail/plan/token_range.hpp"
#include "jrt/distributed/context_layout.hpp"
#include "jrt/sequences.hpp"

namespace jrt::detail {

/// Which tokens of a sequence are a rank's, into how many segments they go, and how many sums these are to the others.
struct LinearPieces {
  /// Whether more than one rank has a part of a sequence.
  static bool is_shared(const ContextLayout& layout, std::int64_t sequence) {
    int holders = 0;
    for (int q = 0; q < layout.ranks; ++q) {
      holders += layout.piece(q, sequence) + layout.encoder_piece(q, sequence) > 0 ? 1 : 0;
    }
    return holders > 1;
  }

  static TokenRange piece_of(const ContextLayout& layout, int q, std::int64_t g) {
    const std::int64_t first = layout.first_token(q, g);
    return {first, first + layout.piece(q, g)};
  }
  static TokenRange encoder_piece_of(const ContextLayout& layout, int q, std::int64_t g) {
    const std::int64_t first = layout.first_encoder_token(q, g);
    return {first, first + layout.encoder_piece(q, g)};
  }
  /// First and last rank with tokens of a sequence.
  static int first_rank(const ContextLayout& layout, std::int64_t g) {
    int q = 0;
    while (q < layout.ranks - 1 && layout.piece(q, g) == 0) {
      ++q;
    }
    return q;
  }
  static int last_rank(const ContextLayout& layout, std::int64_t g) {
    int q = layout.ranks - 1;
    while (q > 0 && layout.piece(q, g) == 0) {
      --q;
    }
    return q;
  }
  /// `function(range)` for every segment of a piece of a sequence of `whole` tokens.
  template <class Function>
  static void for_segments_of(const ContextLayout& layout, const SegmentRule& rule, int q, std::int64_t g,
                              const TokenRange& piece, std::int64_t whole, const Function& function) {
    if (rule.of_piece == nullptr) {
      rule.for_segments(piece, whole, function);
      return;
    }
    if (piece.size() == 0) {
      return;
    }
    const std::int64_t count = segments_of_piece(layout, rule, q, g, piece.size());
    for (std::int64_t i = 0; i < count; ++i) {
      function(segment_of(piece, count, i, rule.chunk));
    }
  }
  /// Segments of `tokens` tokens or encoder tokens of a rank's piece, by `rule.of_piece`.
  static std::int64_t segments_of_piece(const ContextLayout& layout, const SegmentRule& rule, int q, std::int64_t g,
                                        std::int64_t tokens) {
    std::int64_t pieces = 0;
    for (std::int64_t any = 0; any < layout.sequences; ++any) {
      pieces += layout.piece(q, any) > 0 ? 1 : 0;
    }
    const std::int64_t count = clamped(rule.of_piece(tokens, rule.heads * larger<std::int64_t>(pieces, 1), rule.workers), 1,
                                       ceil_div(tokens, rule.chunk));
    return !is_shared(layout, g) && count < rule.min_segments ? 1 : count;
  }
  static std::int64_t segment_length(const ContextLayout& layout, const SegmentRule& rule, int q, std::int64_t g) {
    const std::int64_t tokens = layout.piece(q, g);
    return larger<std::int64_t>(1, ceil_div(tokens, segments_of_piece(layout, rule, q, g, tokens)));
  }
  /// The same for the encoder region: where one launch sums both, its segments are as long as those of tokens.
  template <class Function>
  static void for_encoder_segments(const ContextLayout& layout, const SegmentRule& rule, int q, std::int64_t g,
                                   const Function& function) {
    const TokenRange piece = encoder_piece_of(layout, q, g);
    const std::int64_t tokens = layout.piece(q, g);
    if (rule.delay > 0 && !is_shared(layout, g)) {
      if (piece.size() > 0) {
        function(piece);
      }
      return;
    }
    if (rule.of_piece == nullptr || !rule.sums_at_once || piece.size() == 0 || tokens == 0) {
      for_segments_of(layout, rule, q, g, piece, layout.first_encoder_token(layout.ranks, g), function);
      return;
    }
    const std::int64_t length = segment_length(layout, rule, q, g);
    std::int64_t count = smaller(ceil_div(piece.size(), length), ceil_div(piece.size(), rule.chunk));
    count = !is_shared(layout, g) && count < rule.min_segments ? 1 : count;
    for (std::int64_t i = 0; i < count; ++i) {
      function(segment_of(piece, count, i, rule.chunk));
    }
  }
  /// `function(range)` for every segment of a rank's piece of a sequence, in tokens of the sequence. Where states lag
  /// behind, pieces are cut so that the sums before any rank's state are whole segments.
  template <class Function>
  static void for_segments(const ContextLayout& layout, const SegmentRule& rule, int q, std::int64_t g,
                           const Function& function) {
    const TokenRange piece = piece_of(layout, q, g);
    if (rule.delay == 0) {
      for_segments_of(layout, rule, q, g, piece, layout.first_token(layout.ranks, g), function);
      return;
    }
    std::int64_t begin = piece.begin;
    for (int r = q + 1; r <= layout.ranks; ++r) {
      const std::int64_t cut = r == layout.ranks ? piece.end : state_end(layout, rule, r, g);
      const std::int64_t end = clamped(cut, begin, piece.end);
      if (end > begin) {
        function(TokenRange{begin, end});
      }
      begin = end;
    }
  }
  /// Where states lag behind: whether the segments of a piece are summed in parts, which are joined.
  static bool sums_parts(const ContextLayout& layout, const SegmentRule& rule, std::int64_t g) {
    return rule.delay > 0 && rule.of_piece != nullptr && is_shared(layout, g);
  }
  /// `function(range)` for what is summed at a time of a segment of a rank's piece.
  template <class Function>
  static void for_parts(const ContextLayout& layout, const SegmentRule& rule, int q, std::int64_t g,
                        const TokenRange& segment, const Function& function) {
    const std::int64_t length = sums_parts(layout, rule, g) ? segment_length(layout, rule, q, g) : segment.size();
    const std::int64_t count = smaller(ceil_div(segment.size(), length), ceil_div(segment.size(), rule.chunk));
    for (std::int64_t i = 0; i < count; ++i) {
      function(segment_of(segment, count, i, rule.chunk));
    }
  }
  static std::int64_t count_segments(const ContextLayout& layout, const SegmentRule& rule, int q, std::int64_t g) {
    std::int64_t count = 0;
    for_segments(layout, rule, q, g, [&](const TokenRange&) { ++count; });
    return count;
  }
  static std::int64_t count_encoder_segments(const ContextLayout& layout, const SegmentRule& rule, int q, std::int64_t g) {
    std::int64_t count = 0;
    for_encoder_segments(layout, rule, q, g, [&](const TokenRange&) { ++count; });
    return count;
  }
  /// Sums of a rank's tokens and encoder tokens that scans read: one, if ranks send one, else one for each segment.
  static bool sends_one(const ContextLayout& layout, const SegmentRule& rule, std::int64_t g) {
    return rule.delay == 0 && sends_one_of_encoder(layout, rule, g);
  }
  static bool sends_one_of_encoder(const ContextLayout& layout, const SegmentRule& rule, std::int64_t g) {
    return rule.of_piece != nullptr && is_shared(layout, g);
  }
  static std::int64_t count_sums(const ContextLayout& layout, const SegmentRule& rule, int q, std::int64_t g) {
    const std::int64_t count = count_segments(layout, rule, q, g);
    return sends_one(layout, rule, g) ? smaller<std::int64_t>(count, 1) : count;
  }
  static std::int64_t count_encoder_sums(const ContextLayout& layout, const SegmentRule& rule, int q, std::int64_t g) {
    const std::int64_t count = count_encoder_segments(layout, rule, q, g);
    return sends_one_of_encoder(layout, rule, g) ? smaller<std::int64_t>(count, 1) : count;
  }
  /// Tokens of a sequence that are in the state from which a rank's piece starts.
  static std::int64_t state_end(const ContextLayout& layout, const SegmentRule& rule, int r, std::int64_t g) {
    return larger<std::int64_t>(layout.first_token(r, g) - rule.delay, 0);
  }
  /// Sums of a shared sequence that a rank contributes.
  static std::int64_t entries_of(const ContextLayout& layout, const SegmentRule& rule, int q, std::int64_t g) {
    return (layout.continues(g) && q == first_rank(layout, g) ? 1 : 0) + count_encoder_sums(layout, rule, q, g) +
           count_sums(layout, rule, q, g);
  }
  static std::int64_t entries_back_of(const ContextLayout& layout, const SegmentRule& rule, int q, std::int64_t g) {
    return (q == last_rank(layout, g) ? 1 : 0) + count_sums(layout, rule, q, g);
  }
};

}  // namespace jrt::detail
