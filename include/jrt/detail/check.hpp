// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/status.hpp"
#include "jrt/tensor_view.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail {

/// Collects the first thing that is wrong with the arguments of a call; later checks of a failed one do nothing.
/// Every message names the operation, the argument and both values.
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

  void equal(const char* argument, const char* property, std::int64_t value, std::int64_t expected, const char* source) {
    if (ok() && value != expected) {
      status_ = Status::error(StatusCode::invalid_argument, "%s: argument '%s' has %s = %lld, but %s is %lld.", operation_,
                              argument, property, as_printed(value), source, as_printed(expected));
    }
  }

  void at_least(const char* argument, const char* property, std::int64_t value, std::int64_t minimum) {
    if (ok() && value < minimum) {
      status_ = Status::error(StatusCode::invalid_argument, "%s: argument '%s' has %s = %lld, but must be at least %lld.",
                              operation_, argument, property, as_printed(value), as_printed(minimum));
    }
  }

  void multiple(const char* argument, const char* property, std::int64_t value, std::int64_t divisor, const char* source) {
    if (ok() && (divisor < 1 || value % divisor != 0)) {
      status_ = Status::error(StatusCode::invalid_argument,
                              "%s: argument '%s' has %s = %lld, but must be a multiple of %s, which is %lld.", operation_,
                              argument, property, as_printed(value), source, as_printed(divisor));
    }
  }

  /// Entry `index` of an array lies in [minimum, maximum].
  void entry(const char* array, std::int64_t index, std::int64_t value, std::int64_t minimum, std::int64_t maximum,
             const char* bounds) {
    if (ok() && (value < minimum || value > maximum)) {
      status_ = Status::error(StatusCode::invalid_argument,
                              "%s: argument '%s[%lld]' is %lld, but must be from %lld to %lld (%s).", operation_, array,
                              as_printed(index), as_printed(value), as_printed(minimum), as_printed(maximum), bounds);
    }
  }

  void not_null(const char* argument, const void* pointer) {
    if (ok() && pointer == nullptr) {
      status_ = Status::error(StatusCode::invalid_argument, "%s: argument '%s' is null.", operation_, argument);
    }
  }

  void aligned(const char* argument, const void* pointer, std::size_t alignment) {
    const auto remainder = reinterpret_cast<std::uintptr_t>(pointer) % alignment;
    if (ok() && remainder != 0) {
      status_ = Status::error(StatusCode::invalid_argument,
                              "%s: argument '%s' points %zu bytes past an aligned address, but its alignment is %zu.",
                              operation_, argument, static_cast<std::size_t>(remainder), alignment);
    }
  }

  /// A view's pointer, extents and strides by themselves.
  template <class T>
  void view(const char* argument, const TensorView<T>& view, std::int64_t dim) {
    at_least(argument, "batch", view.batch, 0);
    at_least(argument, "tokens", view.tokens, 0);
    at_least(argument, "heads", view.heads, 1);
    equal(argument, "dim", view.dim, dim, "the operator's");
    at_least(argument, "batch_stride", view.batch_stride, 0);
    at_least(argument, "token_stride", view.token_stride, 0);
    at_least(argument, "head_stride", view.head_stride, 0);
    if (view.batch > 0 && view.tokens > 0) {
      not_null(argument, view.data);
      aligned(argument, view.data, alignof(T));
    }
  }

  /// A view that is written to: its rows must not overlap.
  template <class T>
  void output_view(const char* argument, const TensorView<T>& output, std::int64_t dim) {
    view(argument, output, dim);
    if (output.batch == 0 || output.tokens == 0) {
      return;
    }
    if (output.batch > 1) {
      at_least(argument, "batch_stride", output.batch_stride, dim);
    }
    if (output.tokens > 1) {
      at_least(argument, "token_stride", output.token_stride, dim);
    }
    if (output.heads > 1) {
      at_least(argument, "head_stride", output.head_stride, dim);
    }
  }

  template <class A, class B>
  void same_tokens(const char* argument, const TensorView<A>& view, const char* other_name, const TensorView<B>& other) {
    equal(argument, "batch", view.batch, other.batch, other_name);
    equal(argument, "tokens", view.tokens, other.tokens, other_name);
  }

  template <class Format>
  void pool(const char* argument, const StatePoolView<Format>& pool, std::int64_t heads) {
    not_null(argument, pool.data);
    aligned(argument, pool.data, alignof(typename Format::Scalar));
    at_least(argument, "slots", pool.slots, 0);
    equal(argument, "heads", pool.heads, heads, "the number of key/value heads");
    if (pool.slots > 1) {
      at_least(argument, "slot_stride", pool.slot_stride, heads * Format::head_elements);
    }
  }

  /// Slot indices readable by the host: -1 or within the pool.
  template <class Format>
  void slots(const char* argument, const StateSlots<Format>& state, std::int64_t sequences) {
    for (std::int64_t b = 0; ok() && b < sequences; ++b) {
      entry(argument, b, state.slot(b), skip_slot, state.pool.slots - 1, "-1 skips; the pool's last slot");
    }
  }

  /// No slot that one sequence writes is used by another. Quadratic in the batch, but far below the cost of one state.
  template <class Format>
  void distinct_slots(const char* read_name, const StateSlots<Format>& read, const char* written_name,
                      const StateSlots<Format>& written, std::int64_t sequences) {
    const bool same_pool = read.pool.data == written.pool.data;
    for (std::int64_t b = 0; ok() && b < sequences; ++b) {
      const std::int64_t slot = written.slot(b);
      for (std::int64_t c = 0; ok() && slot != skip_slot && c < sequences; ++c) {
        if (c != b && written.slot(c) == slot) {
          shared_slot(written_name, b, written_name, c, slot);
        } else if (c != b && same_pool && !read.empty() && read.slot(c) == slot) {
          shared_slot(written_name, b, read_name, c, slot);
        }
      }
    }
  }

  void workspace(const Workspace& workspace, std::size_t needed) {
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
  void sequence_shapes(const Sequences& sequences, std::int64_t batch) {
    at_least("sequences.count", "value", sequences.count, 0);
    if (sequences.cu_seqlens != nullptr) {
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
  void offsets(const char* argument, const std::int32_t* offsets, std::int64_t count, std::int64_t tokens) {
    if (offsets == nullptr) {
      return;
    }
    std::int64_t previous = 0;
    for (std::int64_t b = 0; ok() && b <= count; ++b) {
      entry(argument, b, offsets[b], previous, tokens, "not decreasing, at most the view's tokens");
      previous = offsets[b];
    }
  }

  /// The per-sequence arrays, readable by the host.
  void sequence_arrays(const Sequences& sequences, std::int64_t count, std::int64_t tokens, std::int64_t encoder_tokens,
                       bool has_encoder, std::int64_t max_position) {
    offsets("sequences.cu_seqlens", sequences.cu_seqlens, count, tokens);
    if (has_encoder) {
      offsets("sequences.cu_encoder_seqlens", sequences.cu_encoder_seqlens, count, encoder_tokens);
    }
    for (std::int64_t b = 0; ok() && b < count; ++b) {
      const SequenceSpan span = sequence_span(sequences, b, tokens, encoder_tokens);
      if (sequences.seq_lens != nullptr) {
        entry("sequences.seq_lens", b, span.tokens, 0, tokens, "the view's tokens");
      }
      if (sequences.left_pads != nullptr) {
        entry("sequences.left_pads", b, span.left_pad, 0, span.tokens, "the sequence's tokens");
      }
      if (has_encoder) {
        Sequences whole = sequences;
        whole.prefix_lens = nullptr;
        const std::int64_t available = sequence_span(whole, b, tokens, encoder_tokens).prefix;
        const char* name = sequences.prefix_lens != nullptr ? "sequences.prefix_lens" : "prefix (key_encoder.tokens)";
        entry(name, b, span.prefix, 0, available, "what key_encoder holds");
        entry(name, b, span.prefix, 0, span.tokens, "the sequence's tokens");
      }
      if (sequences.first_positions != nullptr) {
        const std::int64_t room = max_position - (span.tokens - span.left_pad);
        entry("sequences.first_positions", b, span.first_position, 0, room < 0 ? 0 : room, "the feature map's positions");
      }
      if (ok() && span.position(span.tokens) - 1 > max_position) {
        status_ =
            Status::error(StatusCode::invalid_argument,
                          "%s: sequence %lld reaches position %lld, but the feature map has max_position = %lld.",
                          operation_, as_printed(b), as_printed(span.position(span.tokens) - 1), as_printed(max_position));
      }
    }
  }

 private:
  void shared_slot(const char* written_name, std::int64_t b, const char* other_name, std::int64_t c, std::int64_t slot) {
    status_ = Status::error(StatusCode::invalid_argument,
                            "%s: arguments '%s[%lld]' and '%s[%lld]' are both slot %lld, but a slot that a sequence writes "
                            "must not be used by another.",
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
