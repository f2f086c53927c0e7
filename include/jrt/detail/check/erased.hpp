// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

/// What checks need of views and states, without their types: the checks are compiled once in a program and not once for
/// each operator. Arguments convert to these by themselves.
namespace jrt::detail {

/// A `TensorView`.
struct AnyView {
  const void* data;
  std::size_t alignment;
  std::int64_t batch;
  std::int64_t tokens;
  std::int64_t heads;
  std::int64_t dim;
  std::int64_t batch_stride;
  std::int64_t token_stride;
  std::int64_t head_stride;

  template <class T>
  AnyView(const TensorView<T>& view)
      : data(view.data),
        alignment(alignof(T)),
        batch(view.batch),
        tokens(view.tokens),
        heads(view.heads),
        dim(view.dim),
        batch_stride(view.batch_stride),
        token_stride(view.token_stride),
        head_stride(view.head_stride) {}

  /// Whether anything of the view is set.
  [[nodiscard]] bool is_given() const { return data != nullptr || batch != 0 || tokens != 0 || heads != 0 || dim != 0; }
};

/// A `StatePoolView` and its format.
struct AnyPool {
  const void* data;
  std::int64_t slots;
  std::int64_t heads;
  std::int64_t slot_stride;
  std::size_t alignment;
  std::int64_t scalar_bytes;
  std::int64_t head_elements;
  std::int64_t (*slot_bytes)(std::int64_t heads);

  template <class Format>
  AnyPool(const StatePoolView<Format>& pool)
      : data(pool.data),
        slots(pool.slots),
        heads(pool.heads),
        slot_stride(pool.slot_stride),
        alignment(Format::alignment),
        scalar_bytes(sizeof(typename Format::Scalar)),
        head_elements(Format::head_elements),
        slot_bytes([](std::int64_t count) -> std::int64_t { return Format::slot_bytes(count); }) {}

  [[nodiscard]] bool empty() const { return data == nullptr; }
};

/// A `StateSlots`.
struct AnySlots {
  AnyPool pool;
  const std::int32_t* slots;

  template <class Format>
  AnySlots(const StateSlots<Format>& state) : pool(state.pool), slots(state.slots) {}

  [[nodiscard]] bool empty() const { return pool.empty(); }
  [[nodiscard]] std::int64_t slot(std::int64_t sequence) const { return slots == nullptr ? sequence : slots[sequence]; }
  [[nodiscard]] bool has_slot(std::int64_t sequence) const { return slot(sequence) >= 0 && slot(sequence) < pool.slots; }
};

/// `sequence_skipped` of state.hpp.
inline bool sequence_skipped(const AnySlots& initial, const std::uint8_t* has_initial_state, const AnySlots& final,
                             std::int64_t b) {
  const bool reads = !initial.empty() && (has_initial_state == nullptr || has_initial_state[b] != 0);
  return (reads && !initial.has_slot(b)) || (!final.empty() && !final.has_slot(b));
}

/// A function of a sequence, borrowed for a call.
template <class Result>
class OfSequence {
 public:
  template <class Function>
  OfSequence(const Function& function)
      : function_(&function),
        call_([](const void* context, std::int64_t b) -> Result { return (*static_cast<const Function*>(context))(b); }) {}

  Result operator()(std::int64_t b) const { return call_(function_, b); }

 private:
  const void* function_;
  Result (*call_)(const void*, std::int64_t);
};

}  // namespace jrt::detail
