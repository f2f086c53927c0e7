// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/integer.hpp"
#include "jrt/status.hpp"

namespace jrt {

/// How the tokens of a batch are divided over the ranks of a group: every rank holds a contiguous piece of every sequence,
/// which may be empty or the whole; the pieces of rank 0, 1, … in this order are the sequence. All ranks describe the same
/// layout. Arrays are in host memory and read only while plans are made.
///
/// A rank's views have batch = 1 and hold its pieces of sequence 0, 1, … one after the other.
struct ContextLayout {
  int ranks = 1;                                    ///< of the group
  std::int64_t sequences = 1;                       ///< of the batch, on all ranks together
  const std::int64_t* tokens = nullptr;             ///< (ranks, sequences): tokens of each piece
  const std::int64_t* encoder_tokens = nullptr;     ///< (ranks, sequences): of the encoder region; if null, there is none
  const std::int64_t* first_positions = nullptr;    ///< (sequences): tokens processed before this call; if null, 0
  const std::uint8_t* has_initial_state = nullptr;  ///< (sequences): not 0 where a sequence has one; if null, none has

  [[nodiscard]] std::int64_t piece(int rank, std::int64_t sequence) const { return tokens[rank * sequences + sequence]; }
  [[nodiscard]] std::int64_t encoder_piece(int rank, std::int64_t sequence) const {
    return encoder_tokens == nullptr ? 0 : encoder_tokens[rank * sequences + sequence];
  }
  [[nodiscard]] std::int64_t first_position(std::int64_t sequence) const {
    return first_positions == nullptr ? 0 : first_positions[sequence];
  }
  [[nodiscard]] bool continues(std::int64_t sequence) const {
    return has_initial_state != nullptr && has_initial_state[sequence] != 0;
  }
  /// Index in the sequence of the first token of a rank's piece; of rank `ranks`, the sequence's tokens.
  [[nodiscard]] std::int64_t first_token(int rank, std::int64_t sequence) const {
    std::int64_t first = 0;
    for (int q = 0; q < rank; ++q) {
      first += piece(q, sequence);
    }
    return first;
  }
  [[nodiscard]] std::int64_t first_encoder_token(int rank, std::int64_t sequence) const {
    std::int64_t first = 0;
    for (int q = 0; q < rank; ++q) {
      first += encoder_piece(q, sequence);
    }
    return first;
  }
};

/// Pieces of one sequence of `tokens` tokens, as even as whole multiples of `multiple` tokens allow: `pieces[rank]`, which
/// is a layout's `tokens` for one sequence. The last piece takes the remainder.
inline void divide_tokens(std::int64_t tokens, int ranks, std::int64_t multiple, std::int64_t* pieces) {
  const std::int64_t units = detail::ceil_div(tokens, multiple);
  std::int64_t begin = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const std::int64_t end = detail::smaller(units * (rank + 1) / ranks * multiple, tokens);
    pieces[rank] = end - begin;
    begin = end;
  }
}

/// Pieces of `sequences` packed sequences with the offsets `cu_seqlens` (sequences + 1), of which rank r takes the tokens
/// [rank_ends[r − 1], rank_ends[r]) of the whole: `pieces` (ranks, sequences) is a layout's `tokens`.
inline void divide_packed(const std::int32_t* cu_seqlens, std::int64_t sequences, const std::int64_t* rank_ends, int ranks,
                          std::int64_t* pieces) {
  for (int rank = 0; rank < ranks; ++rank) {
    const std::int64_t rank_begin = rank == 0 ? 0 : rank_ends[rank - 1];
    for (std::int64_t g = 0; g < sequences; ++g) {
      const auto begin = detail::larger<std::int64_t>(cu_seqlens[g], rank_begin);
      const auto end = detail::smaller<std::int64_t>(cu_seqlens[g + 1], rank_ends[rank]);
      pieces[rank * sequences + g] = detail::larger<std::int64_t>(end - begin, 0);
    }
  }
}

namespace detail {

/// Sum of all tokens must fit in the int32 offsets of packed views.
inline Status check_layout(const ContextLayout& layout, int rank) {
  const auto error = [](const char* what, std::int64_t value, std::int64_t minimum) {
    return Status::error(StatusCode::invalid_argument, "context layout: '%s' is %lld, but must be at least %lld.", what,
                         static_cast<long long>(value), static_cast<long long>(minimum));
  };
  if (layout.ranks < 1) {
    return error("ranks", layout.ranks, 1);
  }
  if (layout.sequences < 0) {
    return error("sequences", layout.sequences, 0);
  }
  if (rank < 0 || rank >= layout.ranks) {
    return Status::error(StatusCode::invalid_argument, "context layout: rank is %d, but must be from 0 to %d (ranks - 1).",
                         rank, layout.ranks - 1);
  }
  if (layout.tokens == nullptr && layout.sequences > 0) {
    return Status::error(StatusCode::invalid_argument, "context layout: 'tokens' is null.");
  }
  for (int q = 0; q < layout.ranks; ++q) {
    std::int64_t tokens = 0;
    std::int64_t encoder = 0;
    for (std::int64_t g = 0; g < layout.sequences; ++g) {
      for (const std::int64_t piece : {layout.piece(q, g), layout.encoder_piece(q, g)}) {
        if (piece < 0 || piece > INT32_MAX) {
          return Status::error(
              StatusCode::invalid_argument,
              "context layout: rank %d has %lld tokens of sequence %lld, but must have from 0 to 2^31 - 1.", q,
              static_cast<long long>(piece), static_cast<long long>(g));
        }
      }
      tokens += layout.piece(q, g);
      encoder += layout.encoder_piece(q, g);
    }
    if (tokens > INT32_MAX || encoder > INT32_MAX) {
      return Status::error(StatusCode::invalid_argument,
                           "context layout: rank %d has %lld tokens and %lld encoder tokens, but at most 2^31 - 1 can be "
                           "addressed.",
                           q, static_cast<long long>(tokens), static_cast<long long>(encoder));
    }
  }
  for (std::int64_t g = 0; g < layout.sequences; ++g) {
    const std::int64_t tokens = layout.first_token(layout.ranks, g);
    const std::int64_t encoder = layout.first_encoder_token(layout.ranks, g);
    if (encoder > tokens) {
      return Status::error(StatusCode::invalid_argument,
                           "context layout: sequence %lld has %lld encoder tokens, but must have from 0 to %lld (its "
                           "tokens).",
                           static_cast<long long>(g), static_cast<long long>(encoder), static_cast<long long>(tokens));
    }
    if (layout.first_position(g) < 0 || layout.first_position(g) > INT32_MAX - tokens) {
      return Status::error(StatusCode::invalid_argument,
                           "context layout: 'first_positions[%lld]' is %lld, but must be from 0 to %lld (2^31 - 1 less the "
                           "sequence's tokens).",
                           static_cast<long long>(g), static_cast<long long>(layout.first_position(g)),
                           static_cast<long long>(INT32_MAX - tokens));
    }
  }
  return {};
}

}  // namespace detail

}  // namespace jrt
