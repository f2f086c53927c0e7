// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>

#include "jrt/detail/distributed/index_arrays.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/token_range.hpp"
#include "jrt/distributed/context_layout.hpp"
#include "jrt/status.hpp"

/// The integer arithmetic of a halo: the rows of the tokens before a rank's piece, which other ranks have.
namespace jrt::detail {

enum HaloArray {
  piece_offsets,      // [pieces + 1] in the rank's tokens
  initial_pieces,     // [sequences] piece that starts from the caller's state
  final_pieces,       // [sequences] piece whose final state is the caller's
  halo_offsets,       // [halos + 1] in the rows of all halos
  halo_pieces,        // [halos] piece that a halo precedes
  halo_counts,        // [halos][2] tokens of the sequence before the halo, in halves
  piece_counts,       // [halos][2] likewise before its piece
  edge_offsets,       // [halos + 1] in the rows of all edges: a halo, then the first tokens of its piece
  edge_final_pieces,  // [halos] piece, if the edge has all of it; else `pieces`
  short_pieces,       // [halos] likewise; else -1
  edge_tokens,        // [pieces] first tokens that look at a halo
  extended_offsets,   // [pieces + 1] in the rows of all pieces, each after its halo
  ending_pieces,      // [sequences] piece that ends its sequence
  // In host memory:
  outgoing_copies,  // [copies][4] peer, first token of the rank, rows, first row in the blocks
  incoming_copies,  // [copies][4] peer, first row in the halos, rows, first row in the blocks
  edges,            // [halos][3] first token of the rank, rows of the halo, tokens after it
  halo_arrays,
};

/// Plan of one rank. A block is what one rank sends another: rows of all its sequences, in their order.
class HaloPlan {
 public:
  /// Ranks that one halo may come from: more are so short that a call on fewer ranks is faster.
  static constexpr int max_peers = 32;

  struct Copy {
    int peer;
    std::int64_t first;
    std::int64_t rows;
    std::int64_t block_row;
  };
  struct Edge {
    std::int64_t first;
    std::int64_t halo;
    std::int64_t tokens;
  };

  IndexArrays<halo_arrays> arrays;
  std::int64_t sequences = 0;
  std::int64_t tokens = 0;         // of this rank
  std::int64_t pieces = 0;         // with tokens
  std::int64_t halos = 0;          // pieces whose sequence begins on another rank
  std::int64_t halo_rows = 0;      // of all
  std::int64_t edge_rows = 0;      // of all
  std::int64_t outgoing_rows = 0;  //
  std::int64_t incoming_rows = 0;  //
  bool reads_initial_state = false;
  bool any_initial_state = false;  // on any rank
  int rank = 0;
  int ranks = 0;

  [[nodiscard]] std::int64_t outgoing() const { return arrays.size(outgoing_copies) / 4; }
  [[nodiscard]] std::int64_t incoming() const { return arrays.size(incoming_copies) / 4; }
  [[nodiscard]] Copy copy(HaloArray list, std::int64_t i) const {
    const std::int32_t* const entry = arrays.host(list) + 4 * i;
    return {entry[0], entry[1], entry[2], entry[3]};
  }
  [[nodiscard]] Edge edge(std::int64_t i) const {
    const std::int32_t* const entry = arrays.host(edges) + 3 * i;
    return {entry[0], entry[1], entry[2]};
  }
  /// Piece `i` with its halo: rows of the halo, and tokens.
  [[nodiscard]] Edge extended(std::int64_t i) const {
    const std::int32_t* const first = arrays.host(piece_offsets) + i;
    const std::int32_t* const row = arrays.host(extended_offsets) + i;
    const std::int64_t count = first[1] - first[0];
    return {first[0], row[1] - row[0] - count, count};
  }

  /// `rows` tokens before a piece are wanted; its first `reach` tokens look at them.
  Status make(const ContextLayout& layout, int of_rank, std::int64_t rows, std::int64_t reach) {
    Status status = check_layout(layout, of_rank);
    if (!status.ok()) {
      return status;
    }
    status = check_halos(layout, rows);
    if (!status.ok()) {
      return status;
    }
    rank = of_rank;
    ranks = layout.ranks;
    sequences = layout.sequences;
    return arrays.fill([&](auto& writer) { write(layout, rows, reach, writer); });
  }

 private:
  static TokenRange piece_of(const ContextLayout& layout, int q, std::int64_t g) {
    const std::int64_t first = layout.first_token(q, g);
    return {first, first + layout.piece(q, g)};
  }
  /// Tokens of rank `from` that are in the halo of rank `to`, counted in the sequence.
  static TokenRange halo_part(const ContextLayout& layout, int from, int to, std::int64_t g, std::int64_t rows) {
    const TokenRange piece = piece_of(layout, to, g);
    if (piece.size() == 0) {
      return {};
    }
    const TokenRange owner = piece_of(layout, from, g);
    const TokenRange part{larger(owner.begin, piece.begin - rows), smaller(owner.end, piece.begin)};
    return part.size() > 0 ? part : TokenRange{};
  }

  static Status check_halos(const ContextLayout& layout, std::int64_t rows) {
    const auto transfers = [&](int from, int to) {
      bool any = false;
      for (std::int64_t g = 0; !any && g < layout.sequences; ++g) {
        any = halo_part(layout, from, to, g, rows).size() > 0;
      }
      return any ? 1 : 0;
    };
    for (int to = 0; to < layout.ranks; ++to) {
      int before_it = 0;
      int after_it = 0;
      for (int other = 0; other < layout.ranks; ++other) {
        before_it += other < to ? transfers(other, to) : 0;
        after_it += other > to ? transfers(to, other) : 0;
      }
      if (larger(before_it, after_it) > max_peers) {
        return Status::error(
            StatusCode::invalid_argument,
            "context layout: the %lld tokens before a rank's own connect rank %d with %d ranks on one side, "
            "but with at most %d; use fewer ranks.",
            static_cast<long long>(rows), to, larger(before_it, after_it), max_peers);
      }
      for (std::int64_t g = 0; g < layout.sequences; ++g) {
        const std::int64_t before = layout.first_token(to, g);
        if (layout.continues(g) && layout.piece(to, g) > 0 && before > 0 && before < rows) {
          return Status::error(
              StatusCode::invalid_argument,
              "context layout: sequence %lld has an initial state and %lld tokens before rank %d, but must "
              "have 0 or at least %lld (the rows that the mixer looks back to).",
              static_cast<long long>(g), static_cast<long long>(before), to, static_cast<long long>(rows));
        }
      }
    }
    return {};
  }

  template <class Writer>
  void write(const ContextLayout& layout, std::int64_t rows, std::int64_t reach, Writer& writer) {
    tokens = 0;
    pieces = 0;
    halos = 0;
    halo_rows = 0;
    edge_rows = 0;
    reads_initial_state = false;
    any_initial_state = false;
    std::int64_t all_pieces = 0;
    for (std::int64_t g = 0; g < sequences; ++g) {
      all_pieces += layout.piece(rank, g) > 0 ? 1 : 0;
      any_initial_state = any_initial_state || layout.continues(g);
    }
    for (const int offsets : {piece_offsets, halo_offsets, edge_offsets, extended_offsets}) {
      writer.push(offsets, 0);
    }
    for (std::int64_t g = 0; g < sequences; ++g) {
      const TokenRange piece = piece_of(layout, rank, g);
      const bool holds = piece.size() > 0;
      const bool starts = holds && piece.begin == 0;
      reads_initial_state = reads_initial_state || (starts && layout.continues(g));
      writer.push(initial_pieces, starts && layout.continues(g) ? pieces : -1);
      writer.push(final_pieces, holds ? pieces : -1);
      writer.push(ending_pieces, holds && piece.end == layout.first_token(ranks, g) ? pieces : -1);
      const std::int64_t edge = piece.begin > 0 ? smaller(reach, piece.size()) : 0;
      if (holds && piece.begin > 0) {
        const std::int64_t halo = smaller(rows, piece.begin);
        const std::int64_t before = (layout.continues(g) ? layout.first_position(g) : 0) + piece.begin - halo;
        writer.push(halo_pieces, pieces);
        for (const auto& [list, count] : {std::pair{halo_counts, before}, std::pair{piece_counts, before + halo}}) {
          writer.push(list, static_cast<std::int32_t>(count & 0xffffffff));
          writer.push(list, count >> 32);
        }
        writer.push(edge_final_pieces, edge == piece.size() ? pieces : all_pieces);
        writer.push(short_pieces, edge == piece.size() ? pieces : -1);
        writer.push(edges, tokens);
        writer.push(edges, halo);
        writer.push(edges, edge);
        halo_rows += halo;
        edge_rows += halo + edge;
        writer.push(halo_offsets, halo_rows);
        writer.push(edge_offsets, edge_rows);
        ++halos;
      }
      if (holds) {
        tokens += piece.size();
        ++pieces;
        writer.push(edge_tokens, edge);
        writer.push(piece_offsets, tokens);
        writer.push(extended_offsets, tokens + halo_rows);
      }
    }
    write_copies(layout, rows, writer);
  }

  template <class Writer>
  void write_copies(const ContextLayout& layout, std::int64_t rows, Writer& writer) {
    const auto push = [&](HaloArray list, int peer, std::int64_t first, std::int64_t count, std::int64_t block_row) {
      writer.push(list, peer);
      writer.push(list, first);
      writer.push(list, count);
      writer.push(list, block_row);
    };
    outgoing_rows = 0;
    incoming_rows = 0;
    for (int peer = 0; peer < ranks; ++peer) {
      std::int64_t first_token = 0;  // of the piece, in the rank's tokens
      std::int64_t first_row = 0;    // of the halo, in the rows of all
      for (std::int64_t g = 0; g < sequences; ++g) {
        const TokenRange piece = piece_of(layout, rank, g);
        const TokenRange sent = peer > rank ? halo_part(layout, rank, peer, g, rows) : TokenRange{};
        if (sent.size() > 0) {
          push(outgoing_copies, peer, first_token + sent.begin - piece.begin, sent.size(), outgoing_rows);
          outgoing_rows += sent.size();
        }
        const TokenRange received = peer < rank ? halo_part(layout, peer, rank, g, rows) : TokenRange{};
        const std::int64_t halo = piece.size() > 0 ? smaller(rows, piece.begin) : 0;
        if (received.size() > 0) {
          push(incoming_copies, peer, first_row + received.begin - (piece.begin - halo), received.size(), incoming_rows);
          incoming_rows += received.size();
        }
        first_token += piece.size();
        first_row += halo;
      }
    }
  }
};

}  // namespace jrt::detail
