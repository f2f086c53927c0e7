// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/check/erased.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// Collects the first thing that is wrong with the arguments of a call; later checks of a failed one do nothing.
/// Every message names the operation, the argument and both values. Checks are not inlined: a call makes dozens, and no
/// program waits for them.
class Checker {
 public:
  explicit Checker(const char* operation) : operation_(operation) {}

  [[nodiscard]] const Status& status() const { return status_; }
  [[nodiscard]] bool ok() const { return status_.ok(); }

  void take(const Status& status) {
    if (ok()) {
      status_ = status;
    }
  }

  [[gnu::noinline]] void equal(const char* argument, const char* property, std::int64_t value, std::int64_t expected,
                               const char* source) {
    if (ok() && value != expected) {
      status_ = Status::error(StatusCode::invalid_argument, "%s: argument '%s' has %s = %lld, but %s is %lld.", operation_,
                              argument, property, as_printed(value), source, as_printed(expected));
    }
  }

  [[gnu::noinline]] void at_least(const char* argument, const char* property, std::int64_t value, std::int64_t minimum) {
    if (ok() && value < minimum) {
      status_ = Status::error(StatusCode::invalid_argument, "%s: argument '%s' has %s = %lld, but must be at least %lld.",
                              operation_, argument, property, as_printed(value), as_printed(minimum));
    }
  }

  [[gnu::noinline]] void multiple(const char* argument, const char* property, std::int64_t value, std::int64_t divisor,
                                  const char* source) {
    if (ok() && (divisor < 1 || value % divisor != 0)) {
      status_ = Status::error(StatusCode::invalid_argument,
                              "%s: argument '%s' has %s = %lld, but must be a multiple of %s, which is %lld.", operation_,
                              argument, property, as_printed(value), source, as_printed(divisor));
    }
  }

  /// Entry `index` of an array lies in [minimum, maximum].
  [[gnu::noinline]] void entry(const char* array, std::int64_t index, std::int64_t value, std::int64_t minimum,
                               std::int64_t maximum, const char* bounds) {
    if (ok() && (value < minimum || value > maximum)) {
      status_ = Status::error(StatusCode::invalid_argument,
                              "%s: argument '%s[%lld]' is %lld, but must be from %lld to %lld (%s).", operation_, array,
                              as_printed(index), as_printed(value), as_printed(minimum), as_printed(maximum), bounds);
    }
  }

  [[gnu::noinline]] void not_null(const char* argument, const void* pointer) {
    if (ok() && pointer == nullptr) {
      status_ = Status::error(StatusCode::invalid_argument, "%s: argument '%s' is null.", operation_, argument);
    }
  }

  [[gnu::noinline]] void aligned(const char* argument, const void* pointer, std::size_t alignment) {
    const auto remainder = reinterpret_cast<std::uintptr_t>(pointer) % alignment;
    if (ok() && remainder != 0) {
      status_ = Status::error(StatusCode::invalid_argument,
                              "%s: argument '%s' points %zu bytes past an aligned address, but its alignment is %zu.",
                              operation_, argument, static_cast<std::size_t>(remainder), alignment);
    }
  }

  /// Whether anything of a view is set.
  static bool is_given(const AnyView& view) { return view.is_given(); }

  /// A required argument was not left out; asked before anything is said of its extents, which are 0 because it was.
  [[gnu::noinline]] void given(const char* argument, bool is_given, const char* property, std::int64_t expected,
                               const char* source) {
    if (ok() && !is_given) {
      status_ = Status::error(StatusCode::invalid_argument, "%s: argument '%s' is missing: it has %s = 0, but %s is %lld.",
                              operation_, argument, property, source, as_printed(expected));
    }
  }
  void given(const char* argument, const AnyView& view, const char* property, std::int64_t expected, const char* source) {
    given(argument, view.is_given(), property, expected, source);
  }

  /// A view's pointer, extents and strides by themselves.
  [[gnu::noinline]] void view(const char* argument, const AnyView& view, std::int64_t dim) {
    given(argument, view, "dim", dim, "the operator's");
    at_least(argument, "batch", view.batch, 0);
    at_least(argument, "tokens", view.tokens, 0);
    at_least(argument, "heads", view.heads, 1);
    equal(argument, "dim", view.dim, dim, "the operator's");
    at_least(argument, "batch_stride", view.batch_stride, 0);
    at_least(argument, "token_stride", view.token_stride, 0);
    at_least(argument, "head_stride", view.head_stride, 0);
    if (view.batch > 0 && view.tokens > 0) {
      not_null(argument, view.data);
      aligned(argument, view.data, view.alignment);
    }
  }

  /// One dimension of something that is written to.
  struct Extent {
    const char* name;
    std::int64_t count;
    std::int64_t stride;
  };

  /// Dimensions that nest, the smallest stride within the next larger, over rows of `row` contiguous elements: no element
  /// is written twice.
  template <std::size_t count>
  void nested(const char* argument, Extent (&extents)[count], std::int64_t row) {
    nested(argument, extents, static_cast<int>(count), row);
  }

  /// Rows of a view that is written to do not overlap.
  [[gnu::noinline]] void rows_apart(const char* argument, const AnyView& output) {
    if (ok() && output.batch > 0 && output.tokens > 0) {
      Extent extents[] = {{"batch_stride", output.batch, output.batch_stride},
                          {"token_stride", output.tokens, output.token_stride},
                          {"head_stride", output.heads, output.head_stride}};
      nested(argument, extents, output.dim);
    }
  }

  void same_tokens(const char* argument, const AnyView& view, const char* other_name, const AnyView& other) {
    equal(argument, "batch", view.batch, other.batch, other_name);
    equal(argument, "tokens", view.tokens, other.tokens, other_name);
  }

  [[gnu::noinline]] void pool(const char* argument, const AnyPool& pool, std::int64_t heads) {
    not_null(argument, pool.data);
    aligned(argument, pool.data, pool.alignment);
    at_least(argument, "slots", pool.slots, 0);
    equal(argument, "heads", pool.heads, heads, "the number of key/value heads");
    if (pool.slots > 1) {
      at_least(argument, "slot_stride", pool.slot_stride, heads * pool.head_elements);
      const std::int64_t granule = static_cast<std::int64_t>(pool.alignment) / pool.scalar_bytes;
      multiple(argument, "slot_stride", pool.slot_stride, granule, "the elements of the format's alignment");
    }
  }

  /// A slot index readable by the host: -1 or within the pool.
  void slot(const char* argument, const AnySlots& state, std::int64_t b) {
    entry(argument, b, state.slot(b), skip_slot, state.pool.slots - 1, "-1 skips; the pool's last slot");
  }

  /// Without slot indices sequence b has slot b, which the host can check whatever memory the arrays are in.
  void implicit_slots(const char* argument, const AnySlots& state, std::int64_t sequences) {
    if (!state.empty() && state.slots == nullptr) {
      at_least(argument, "slots", state.pool.slots, sequences);
    }
  }

  /// Memory of the state that one sequence uses; nothing if it uses none.
  struct StateMemory {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    std::int64_t slot = skip_slot;

    [[nodiscard]] bool overlaps(const StateMemory& other) const { return begin < other.end && other.begin < end; }
  };

  static StateMemory memory_of(const AnySlots& state, std::int64_t b) {
    if (state.empty() || state.slot(b) == skip_slot) {
      return {};
    }
    const AnyPool& pool = state.pool;
    const auto begin = reinterpret_cast<std::uintptr_t>(static_cast<const std::byte*>(pool.data) +
                                                        state.slot(b) * pool.slot_stride * pool.scalar_bytes);
    return {begin, begin + static_cast<std::uintptr_t>(pool.slot_bytes(pool.heads)), state.slot(b)};
  }

  /// Batches up to this size are compared pair by pair, if one pass cannot tell that nothing is shared.
  static constexpr std::int64_t max_compared = 1024;

  /// No state that one sequence writes is used by another. `read(b)` and `written(b)` give the memory of sequence b.
  [[gnu::noinline]] void states_apart(const char* read_name, const OfSequence<StateMemory>& read, const char* written_name,
                                      const OfSequence<StateMemory>& written, std::int64_t sequences) {
    // One pass settles the usual cases: written in ascending order, and read in place or elsewhere altogether.
    bool ascending = true;
    bool in_place = true;
    StateMemory all_read{UINTPTR_MAX, 0};
    StateMemory all_written{UINTPTR_MAX, 0};
    for (std::int64_t b = 0; b < sequences; ++b) {
      const StateMemory from = read(b);
      const StateMemory to = written(b);
      if (to.begin != to.end) {
        ascending = ascending && to.begin >= all_written.end;
        all_written = {smaller(all_written.begin, to.begin), larger(all_written.end, to.end)};
      }
      if (from.begin != from.end) {
        in_place = in_place && from.begin == to.begin && from.end == to.end;
        all_read = {smaller(all_read.begin, from.begin), larger(all_read.end, from.end)};
      }
    }
    if ((ascending && (in_place || !all_read.overlaps(all_written))) || sequences > max_compared) {
      return;
    }
    for (std::int64_t b = 0; ok() && b < sequences; ++b) {
      const StateMemory to = written(b);
      for (std::int64_t c = 0; ok() && c < sequences; ++c) {
        if (c != b && to.overlaps(written(c))) {
          shared_slot(written_name, b, written_name, c, to.slot);
        } else if (c != b && to.overlaps(read(c))) {
          shared_slot(written_name, b, read_name, c, to.slot);
        }
      }
    }
  }

  [[gnu::noinline]] void workspace(const Workspace& workspace, std::size_t needed) {
    if (ok() && workspace.bytes < needed) {
      status_ =
          Status::error(StatusCode::invalid_argument, "%s: argument 'workspace' has bytes = %zu, but the call needs %zu.",
                        operation_, workspace.bytes, needed);
    }
    if (needed > 0) {
      not_null("workspace", workspace.data);
    }
  }

  /// The extents of a call's sequences that need no look into the arrays.
  [[gnu::noinline]] void sequence_shapes(const Sequences& sequences, std::int64_t batch) {
    at_least("sequences.count", "value", sequences.count, 0);
    if (sequences.cu_seqlens != nullptr) {
      at_least("sequences.count", "value", sequences.count, 1);
      equal("query or key", "batch", batch, 1, "the batch of packed sequences");
      if (ok() && sequences.seq_lens != nullptr) {
        status_ = Status::error(
            StatusCode::invalid_argument,
            "%s: argument 'sequences.seq_lens' is for dense views, but 'sequences.cu_seqlens' is given.", operation_);
      }
    } else if (sequences.count != 0) {
      not_null("sequences.cu_seqlens", sequences.cu_seqlens);
    }
  }

  /// Offsets of packed sequences, readable by the host: not decreasing, within the view.
  void offsets(const char* argument, const std::int32_t* offsets, std::int64_t count, std::int64_t tokens,
               const char* bounds) {
    if (offsets == nullptr) {
      return;
    }
    std::int64_t previous = 0;
    for (std::int64_t b = 0; ok() && b <= count; ++b) {
      entry(argument, b, offsets[b], previous, tokens, bounds);
      previous = offsets[b];
    }
  }

  /// The per-sequence arrays, readable by the host. Of a sequence that `skipped(b)` says is skipped, only offsets count.
  [[gnu::noinline]] void sequence_arrays(const Sequences& sequences, std::int64_t count, std::int64_t tokens,
                                         std::int64_t encoder_tokens, bool has_encoder, std::int64_t max_position,
                                         const OfSequence<bool>& skipped) {
    const char* const no_encoder = "argument 'key_encoder' is missing or has no tokens";
    const char* const in_view = "not decreasing, at most the view's tokens";
    offsets("sequences.cu_seqlens", sequences.cu_seqlens, count, tokens, in_view);
    if (has_encoder) {
      offsets("sequences.cu_encoder_seqlens", sequences.cu_encoder_seqlens, count, encoder_tokens,
              encoder_tokens == 0 ? no_encoder : in_view);
    }
    for (std::int64_t b = 0; ok() && b < count; ++b) {
      if (skipped(b)) {
        continue;
      }
      const SequenceSpan span = sequence_span(sequences, b, tokens, encoder_tokens);
      entry("sequences.seq_lens", b, span.tokens, 0, span.row_tokens, "the view's tokens");
      entry("sequences.left_pads", b, span.left_pad, 0, span.tokens, "the sequence's tokens");
      if (has_encoder) {
        const char* const name = sequences.prefix_lens != nullptr          ? "sequences.prefix_lens"
                                 : sequences.cu_encoder_seqlens != nullptr ? "prefix (sequences.cu_encoder_seqlens)"
                                                                           : "prefix (key_encoder.tokens)";
        entry(name, b, span.prefix, 0, span.encoder_tokens, encoder_tokens == 0 ? no_encoder : "what key_encoder holds");
        entry(name, b, span.prefix, 0, span.tokens, "the sequence's tokens");
      }
      entry("sequences.first_positions", b, span.first_position, 0, max_position, "the feature map's max_position");
      if (ok() && span.last_position() > max_position) {
        status_ = Status::error(StatusCode::invalid_argument,
                                "%s: sequence %lld reaches position %lld, but the feature map has max_position = %lld.",
                                operation_, as_printed(b), as_printed(span.last_position()), as_printed(max_position));
      }
    }
  }

 private:
  [[gnu::noinline]] void nested(const char* argument, Extent* extents, int count, std::int64_t row) {
    for (int i = 1; i < count; ++i) {  // sorted by insertion: there are four at most
      for (int j = i; j > 0 && extents[j].stride < extents[j - 1].stride; --j) {
        const Extent larger = extents[j - 1];
        extents[j - 1] = extents[j];
        extents[j] = larger;
      }
    }
    std::int64_t covered = row;
    for (int i = 0; i < count; ++i) {
      if (extents[i].count > 1) {
        at_least(argument, extents[i].name, extents[i].stride, covered);
        covered = extents[i].stride * (extents[i].count - 1) + covered;
      }
    }
  }

  [[gnu::cold]] void shared_slot(const char* written_name, std::int64_t b, const char* other_name, std::int64_t c,
                                 std::int64_t slot) {
    status_ =
        Status::error(StatusCode::invalid_argument,
                      "%s: arguments '%s[%lld]' and '%s[%lld]' share the state of slot %lld, but a state that a sequence "
                      "writes must not be used by another.",
                      operation_, written_name, as_printed(b), other_name, as_printed(c), as_printed(slot));
  }

  static long long as_printed(std::int64_t value) { return static_cast<long long>(value); }

  const char* operation_;
  Status status_;
};

/// The run-time check of a feature map that has one, and its last position.
template <class Map>
Status check_map(const Map& map) {
  if constexpr (requires { map.check(); }) {
    return map.check();
  } else {
    return {};
  }
}

template <class Map>
std::int64_t max_position(const Map& map) {
  if constexpr (requires { map.max_position(); }) {
    return map.max_position();
  } else {
    return INT64_MAX / 2;
  }
}

}  // namespace jrt::detail
