// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include "jrt/detail/distributed/index_arrays.hpp"
#include "jrt/detail/distributed/linear_pieces.hpp"
#include "jrt/detail/distributed/segment_rule.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/token_range.hpp"
#include "jrt/distributed/context_layout.hpp"
#include "jrt/sequences.hpp"
#include "jrt/status.hpp"

/// The integer arithmetic of context-parallel linear attention: which sums each rank forms, where they lie in what all
/// ranks gather, and in which order they are added up.
///
/// A rank's tokens are segments, each of one sequence: a whole piece, or, if the operator's split depends on tokens alone,
/// the segments of the whole sequence, cut where ranks meet. Every segment of a divided sequence has a sum; the state that
/// it starts from is the initial state, then all encoder sums, then the sums of all segments before it, always in this
/// order. Scans are lists of codes, one list for each divided sequence:
///
///     code >= 0      running += sums[code]
///     code < 0       states[~code] = running
///
/// from running = 0. Where a rank's pieces are divided by its own device, it adds up the sums of its segments and sends
/// one: `join` lists are of the same kind. The state of hybrid attention lags behind: tokens enter it when they leave the
/// window, so that a piece starts from the sums of the tokens up to `delay` before it.
namespace jrt::detail {

enum LinearArray {
  token_offsets,        // [segments + 1] in the rank's tokens
  prefix_offsets,       // [segments + 1] in the rank's encoder region; where states lag behind, [pieces + 1]
  prefix_lengths,       // likewise: encoder tokens that the segment reads itself
  token_positions,      // [segments] tokens of the sequence before the segment
  token_sums,           // [segments] slot of the segment's sum
  encoder_offsets,      // [encoder segments + 1]
  encoder_positions,    // [encoder segments]
  encoder_sums,         // [encoder segments] slot of the sum
  initial_states,       // [sequences] segment that starts from the caller's state
  initial_sums,         // [sequences] slot in which the caller's state enters the scan
  final_states,         // [sequences] segment whose final state is the caller's
  forward_scans,        // [scans + 1]
  forward_codes,        //
  reverse_sums,         // [segments]
  final_gradients,      // [sequences] segment that ends with the caller's gradient
  final_gradient_sums,  // [sequences] slot in which the caller's gradient enters the scan
  reverse_scans,        // [scans + 1]
  reverse_codes,        //
  encoder_gradients,    // [encoder segments] state that holds R for them
  initial_gradients,    // [sequences] state that holds the gradient of the caller's initial state
  divided_pieces,       // [pieces] piece, if its sequence is divided
  join_scans,           // [joins + 1] the sums of a rank's segments to those that it sends
  join_codes,           //
  join_scans_back,      // [joins back + 1]
  join_codes_back,      //
  linear_arrays,
};

/// Plan of one rank. Slots of gathered sums are rank · gathered + entry; sums that no other rank needs follow.
class LinearPlan : public LinearPieces {
 public:
  IndexArrays<linear_arrays> arrays;
  std::int64_t sequences = 0;
  std::int64_t tokens = 0;            // of this rank
  std::int64_t encoder_tokens = 0;    // likewise
  std::int64_t pieces = 0;            // with tokens
  std::int64_t segments = 0;          // of these
  std::int64_t encoder_segments = 0;  //
  std::int64_t totals = 0;         // states after `segments` others: sums over all queries, for encoder and initial state
  std::int64_t gathered = 0;       // sums that each rank contributes, forward
  std::int64_t gathered_back = 0;  // likewise, backward
  std::int64_t own_sums = 0;       // that only this rank needs, forward and backward
  std::int64_t scans = 0;
  std::int64_t joins = 0;            // forward
  std::int64_t joins_back = 0;       // backward
  std::int64_t longest_segment = 0;  // tokens
  bool reads_initial_state = false;  // of the caller, on this rank
  int rank = 0;
  int ranks = 0;

  [[nodiscard]] std::int64_t joins_of(LinearArray lists) const { return lists == join_scans ? joins : joins_back; }
  [[nodiscard]] std::int64_t sum_slots() const { return ranks * gathered + own_sums; }
  /// Of R after every segment, R before it, and totals.
  [[nodiscard]] std::int64_t gradient_slots() const { return 2 * segments + totals; }
  [[nodiscard]] std::int64_t sum_slots_back() const { return ranks * gathered_back + own_sums; }

  Status make(const ContextLayout& layout, int of_rank, const SegmentRule& rule) {
    Status status = check_layout(layout, of_rank);
    if (!status.ok()) {
      return status;
    }
    rank = of_rank;
    ranks = layout.ranks;
    sequences = layout.sequences;
    const std::unique_ptr<std::int64_t[]> entries(new (std::nothrow) std::int64_t[2 * static_cast<std::size_t>(ranks)]);
    if (entries == nullptr) {
      return Status::error(StatusCode::out_of_memory, "context plan: no memory for ranks = %d.", ranks);
    }
    count_gathered(layout, rule, entries.get());
    return arrays.fill([&](auto& writer) {
      Builder<std::decay_t<decltype(writer)>>{*this, layout, rule, writer, entries.get()}.run();
    });
  }

 private:
  void count_gathered(const ContextLayout& layout, const SegmentRule& rule, std::int64_t* entries) {
    std::int64_t* const back = entries + ranks;
    gathered = 0;
    gathered_back = 0;
    for (int q = 0; q < ranks; ++q) {
      entries[q] = 0;
      back[q] = 0;
      for (std::int64_t g = 0; g < sequences; ++g) {
        if (is_shared(layout, g)) {
          entries[q] += entries_of(layout, rule, q, g);
          back[q] += entries_back_of(layout, rule, q, g);
        }
      }
      gathered = larger(gathered, entries[q]);
      gathered_back = larger(gathered_back, back[q]);
    }
  }

  /// Writes the arrays; run twice, with the same results.
  template <class Writer>
  struct Builder {
    LinearPlan& plan;
    const ContextLayout& layout;
    const SegmentRule& rule;
    Writer& writer;
    std::int64_t* next;  // [ranks] entries of the sequences before, forward; then backward
    std::int64_t total_segments = 0;

    void run() {
      plan.tokens = 0;
      plan.encoder_tokens = 0;
      plan.pieces = 0;
      plan.segments = 0;
      plan.encoder_segments = 0;
      plan.own_sums = 0;
      plan.longest_segment = 0;
      plan.reads_initial_state = false;
      for (int i = 0; i < 2 * plan.ranks; ++i) {
        next[i] = 0;
      }
      plan.totals = 0;
      for (std::int64_t g = 0; g < plan.sequences; ++g) {
        total_segments += count_segments(layout, rule, plan.rank, g);
      }
      for (const int offsets :
           {token_offsets, encoder_offsets, forward_scans, reverse_scans, join_scans, join_scans_back}) {
        writer.push(offsets, 0);
      }
      for (std::int64_t g = 0; g < plan.sequences; ++g) {
        sequence(g);
      }
      writer.push(prefix_offsets, plan.encoder_tokens);
      plan.scans = writer.used(forward_scans) - 1;
      plan.joins = writer.used(join_scans) - 1;
      plan.joins_back = writer.used(join_scans_back) - 1;
    }

    void sequence(std::int64_t g) {
      const int r = plan.rank;
      const std::int64_t whole = layout.first_token(plan.ranks, g);
      const std::int64_t whole_encoder = layout.first_encoder_token(plan.ranks, g);
      const bool shared = is_shared(layout, g);
      const std::int64_t own_segments = count_segments(layout, rule, r, g);
      const std::int64_t own_encoder_segments = count_encoder_segments(layout, rule, r, g);
      const bool divided =
          shared || (rule.of_piece == nullptr || rule.delay > 0 ? rule.clamped(whole) > 1 || rule.clamped(whole_encoder) > 1
                                                                : own_segments > 1 || own_encoder_segments > 1);
      const bool one_sum = sends_one(layout, rule, g);
      const TokenRange piece = piece_of(layout, r, g);
      const TokenRange encoder = encoder_piece_of(layout, r, g);
      const bool holds = piece.size() > 0;
      const bool starts = holds && r == first_rank(layout, g) && layout.continues(g);
      const bool ends = holds && r == last_rank(layout, g);
      const std::int64_t first_segment = plan.segments;
      const std::int64_t own = plan.ranks * plan.gathered + plan.own_sums;
      const std::int64_t own_back = plan.ranks * plan.gathered_back + plan.own_sums;
      // Entries of this sequence lie one after the other: initial state, encoder, tokens; backward: final gradient, tokens.
      const auto entry = [&](int q) { return shared ? q * plan.gathered + next[q] : own; };
      const auto entry_back = [&](int q) { return shared ? q * plan.gathered_back + next[plan.ranks + q] : own_back; };
      const auto encoder_entry = [&](int q) {
        return entry(q) + (layout.continues(g) && q == first_rank(layout, g) ? 1 : 0);
      };
      const auto token_entry = [&](int q) { return encoder_entry(q) + count_encoder_sums(layout, rule, q, g); };
      const auto token_entry_back = [&](int q) { return entry_back(q) + (q == last_rank(layout, g) ? 1 : 0); };
      // Slots of the sums of this rank's segments: those that it sends, or others that are joined to one.
      const bool joins_tokens = one_sum && own_segments > 1;
      const bool joins_encoder = sends_one_of_encoder(layout, rule, g) && own_encoder_segments > 1;
      const bool joins_parts = sums_parts(layout, rule, g);
      const std::int64_t encoder_slot = joins_encoder ? own : encoder_entry(r);
      const std::int64_t token_slot = joins_tokens ? own + (joins_encoder ? own_encoder_segments : 0) : token_entry(r);
      const std::int64_t part_slot = own + (joins_encoder ? own_encoder_segments : 0);
      const std::int64_t token_slot_back = joins_tokens ? own_back : token_entry_back(r);
      if (joins_encoder) {
        join(join_scans, join_codes, encoder_slot, own_encoder_segments, encoder_entry(r));
      }
      if (joins_tokens && !ends) {
        join(join_scans, join_codes, token_slot, own_segments, token_entry(r));
      }
      if (joins_tokens && (piece.begin > 0 || whole_encoder > 0 || layout.continues(g))) {
        join(join_scans_back, join_codes_back, token_slot_back, own_segments, token_entry_back(r));
      }

      // Sums of later tokens are in no state that a segment starts from.
      const std::int64_t last_needed = rule.delay > 0 ? state_end(layout, rule, last_rank(layout, g), g) : whole - 1;
      std::int64_t index = 0;
      std::int64_t parts = 0;
      for_segments(layout, rule, r, g, [&](const TokenRange& range) {
        const bool last = range.end > last_needed && !rule.reads_future;
        const bool first = range.begin == 0 && whole_encoder == 0 && !layout.continues(g) && !rule.reads_future;
        if (rule.delay == 0 || index == 0) {
          writer.push(prefix_offsets, plan.encoder_tokens + (index == 0 ? 0 : encoder.size()));
          writer.push(prefix_lengths, divided ? 0 : encoder.size());
        }
        const std::int64_t first_part = parts;
        for_parts(layout, rule, r, g, range, [&](const TokenRange& part) {
          plan.tokens += part.size();
          plan.longest_segment = larger(plan.longest_segment, part.size());
          writer.push(token_offsets, plan.tokens);
          writer.push(token_positions, layout.first_position(g) + part.begin);
          writer.push(token_sums, divided && !last ? (joins_parts ? part_slot + parts : token_slot + index) : -1);
          writer.push(reverse_sums, divided && !first ? token_slot_back + index : -1);
          ++plan.segments;
          ++parts;
        });
        if (joins_parts && !last) {
          join(join_scans, join_codes, part_slot + first_part, parts - first_part, token_entry(r) + index);
        }
        ++index;
      });
      // States of gradients: R after every segment, R before it, and totals.
      const std::int64_t before = total_segments + first_segment;
      const std::int64_t total = 2 * total_segments + plan.totals;
      const bool has_total = divided && (encoder.size() > 0 || starts);
      plan.totals += has_total ? 1 : 0;
      index = 0;
      for_encoder_segments(layout, rule, r, g, [&](const TokenRange& range) {
        plan.encoder_tokens += range.size();
        plan.longest_segment = larger(plan.longest_segment, range.size());
        writer.push(encoder_offsets, plan.encoder_tokens);
        writer.push(encoder_positions, layout.first_position(g) + range.begin);
        writer.push(encoder_sums, divided ? encoder_slot + index : -1);
        writer.push(encoder_gradients, divided ? total : before);
        ++plan.encoder_segments;
        ++index;
      });
      plan.reads_initial_state = plan.reads_initial_state || starts;
      writer.push(initial_states, starts && !divided ? first_segment : -1);
      writer.push(initial_sums, starts && divided ? entry(r) : -1);
      writer.push(final_states, holds ? plan.segments - 1 : -1);
      writer.push(final_gradients, ends && !divided ? first_segment : -1);
      writer.push(final_gradient_sums, ends && divided ? entry_back(r) : -1);
      writer.push(initial_gradients, !starts ? -1 : (divided ? total : before));

      if (holds || has_total) {
        if (divided && holds) {
          forward_scan(g, rule.delay > 0 ? plan.pieces : first_segment, token_slot, entry, encoder_entry, token_entry);
        } else if (holds) {
          writer.push(forward_codes, ~(rule.delay > 0 ? plan.pieces : first_segment));  // empty, unless a state follows
        }
        writer.push(forward_scans, writer.used(forward_codes));
        if (divided) {
          reverse_scan(g, first_segment, has_total, total, token_slot_back, entry_back, token_entry_back);
        } else {
          writer.push(reverse_codes, ~first_segment);  // likewise
        }
        writer.push(reverse_scans, writer.used(reverse_codes));
      }
      if (holds) {
        writer.push(divided_pieces, divided ? plan.pieces : -1);
        ++plan.pieces;
      }
      if (shared) {
        for (int q = 0; q < plan.ranks; ++q) {
          next[q] += entries_of(layout, rule, q, g);
          next[plan.ranks + q] += entries_back_of(layout, rule, q, g);
        }
        plan.own_sums +=
            (joins_tokens ? own_segments : 0) + (joins_encoder ? own_encoder_segments : 0) + (joins_parts ? parts : 0);
      } else if (divided) {
        plan.own_sums += larger(entries_of(layout, rule, r, g), entries_back_of(layout, rule, r, g));
      }
    }

    /// A list that adds up `count` sums.
    void join(int lists, int codes, std::int64_t first, std::int64_t count, std::int64_t to) {
      for (std::int64_t i = 0; i < count; ++i) {
        writer.push(codes, first + i);
      }
      writer.push(codes, ~to);
      writer.push(lists, writer.used(codes));
    }

    template <class Entry, class EncoderEntry, class TokenEntry>
    void forward_scan(std::int64_t g, std::int64_t first_state, std::int64_t token_slot, const Entry& entry,
                      const EncoderEntry& encoder_entry, const TokenEntry& token_entry) {
      if (layout.continues(g)) {
        writer.push(forward_codes, entry(first_rank(layout, g)));
      }
      for (int q = 0; q < plan.ranks; ++q) {
        const std::int64_t count = count_encoder_sums(layout, rule, q, g);
        for (std::int64_t i = 0; i < count; ++i) {
          writer.push(forward_codes, encoder_entry(q) + i);
        }
      }
      const std::int64_t end = state_end(layout, rule, plan.rank, g);
      for (int q = 0; q < (rule.reads_future ? plan.ranks : plan.rank); ++q) {
        std::int64_t i = token_entry(q);
        if (sends_one(layout, rule, g)) {
          if (count_sums(layout, rule, q, g) > 0) {
            writer.push(forward_codes, i);
          }
          continue;
        }
        for_segments(layout, rule, q, g, [&](const TokenRange& range) {
          if (q != plan.rank && (rule.reads_future || range.end <= end)) {
            writer.push(forward_codes, i);
          }
          ++i;
        });
      }
      const std::int64_t own = rule.delay > 0 ? 1 : count_segments(layout, rule, plan.rank, g);
      for (std::int64_t i = 0; i < own; ++i) {
        writer.push(forward_codes, ~(first_state + i));
        if (i + 1 < own) {
          writer.push(forward_codes, token_slot + i);
        }
      }
    }

    template <class EntryBack, class TokenEntryBack>
    void reverse_scan(std::int64_t g, std::int64_t first_segment, bool has_total, std::int64_t total,
                      std::int64_t token_slot_back, const EntryBack& entry_back, const TokenEntryBack& token_entry_back) {
      const std::int64_t own = count_segments(layout, rule, plan.rank, g);
      writer.push(reverse_codes, entry_back(last_rank(layout, g)));
      for (int q = plan.ranks - 1; q >= 0; --q) {
        if (q == plan.rank) {
          // The mask that reads all tokens has one segment a piece, whose own sum its pass adds; the total comes after it.
          for (std::int64_t i = own - 1; !rule.reads_future && i >= 0; --i) {
            writer.push(reverse_codes, ~(first_segment + i));
            if (i > 0 || has_total) {
              writer.push(reverse_codes, token_slot_back + i);
            }
          }
        } else if (q > plan.rank || has_total || rule.reads_future) {
          for (std::int64_t i = count_sums(layout, rule, q, g) - 1; i >= 0; --i) {
            writer.push(reverse_codes, token_entry_back(q) + i);
          }
        }
      }
      if (rule.reads_future && own > 0) {
        writer.push(reverse_codes, ~first_segment);
        if (has_total) {
          writer.push(reverse_codes, token_entry_back(plan.rank));
        }
      }
      if (has_total) {
        writer.push(reverse_codes, ~total);
      }
    }
  };
};

}  // namespace jrt::detail
