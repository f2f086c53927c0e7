// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "jrt/detail/host_device.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/numeric.hpp"
#include "jrt/policy/feature_map.hpp"
#include "jrt/status.hpp"

/// The recurrent state: its contents, and the pool of slots that holds it.
namespace jrt {

/// Compile-time description of one head's state: S = Σ φ(k)vᵀ, `rows` x `columns` row-major, followed by z = Σ φ(k), `rows`
/// values, padded to a multiple of 16 values so that every head starts at an aligned address. `Scalar` is the storage type
/// only; sums are formed in float, or in double if it or the element is double.
///
/// float is the default for a reason: the state is a plain sum whose constant feature counts tokens, and bfloat16 stops
/// counting at 256, half at 2048.
template <FeatureMap Map, int ValueDim, Element ScalarT>
struct StateFormat {
  using Scalar = ScalarT;
  using Features = Map;

  static constexpr const char* name = Map::name;  ///< written to saved states
  static constexpr int input_dim = Map::input_dim;
  static constexpr int rows = Map::feature_dim;
  static constexpr int columns = ValueDim;
  static constexpr std::int64_t normaliser_offset = std::int64_t{rows} * columns;
  static constexpr std::int64_t head_values = normaliser_offset + rows;  ///< without the padding
  static constexpr std::int64_t head_elements = detail::round_up<std::int64_t>(head_values, 16);
  static constexpr std::size_t alignment = alignof(Scalar);  ///< of pools and their slots, in bytes

  /// Bytes of one slot: the decode state of one sequence in one layer, constant in the number of tokens.
  static constexpr std::int64_t slot_bytes(std::int64_t heads) {
    return head_elements * heads * static_cast<std::int64_t>(sizeof(Scalar));
  }
};

/// A pool of states in the caller's memory: `slots` slots, each with `heads` key/value heads of `Format`, slot i starting
/// at `data + i * slot_stride` (in elements, 64-bit; larger than the slot if the engine interleaves other data). Operations
/// take int32 slot indices; `skip_slot` marks a padding row of the batch.
template <class Format>
struct StatePoolView {
  typename Format::Scalar* data = nullptr;
  std::int64_t slots = 0;
  std::int64_t heads = 0;
  std::int64_t slot_stride = 0;

  /// S of one slot and head: `Format::rows` x `Format::columns`, row-major; z follows at `Format::normaliser_offset`.
  [[nodiscard]] JRT_DETAIL_HD constexpr typename Format::Scalar* head(std::int64_t slot, std::int64_t h) const {
    return data + (slot * slot_stride + h * Format::head_elements);
  }
  [[nodiscard]] JRT_DETAIL_HD constexpr bool empty() const { return data == nullptr; }

  /// Heads [first, first + count) of every slot, for calls on a share of the heads: what one rank of a tensor-parallel
  /// engine holds, or one of several grouped calls. (A stack's pool has one head; slice what `layer_slots` returns.)
  [[nodiscard]] JRT_DETAIL_HD constexpr StatePoolView slice_heads(std::int64_t first, std::int64_t count) const {
    return {empty() ? nullptr : data + first * Format::head_elements, slots, count, slot_stride};
  }
};

/// View of contiguous slots.
template <class Format>
JRT_DETAIL_HD constexpr StatePoolView<Format> view_pool(typename Format::Scalar* data, std::int64_t slots,
                                                        std::int64_t heads) {
  return {data, slots, heads, heads * Format::head_elements};
}

/// Slot index of a padding row: it is skipped and its output zeroed.
inline constexpr std::int32_t skip_slot = -1;

/// The states of a batch: sequence b has slot `slots[b]` of `pool`, or slot b if `slots` is null. A default-constructed
/// value means that there are no states.
template <class Format>
struct StateSlots {
  StatePoolView<Format> pool{};
  const std::int32_t* slots = nullptr;

  [[nodiscard]] JRT_DETAIL_HD constexpr bool empty() const { return pool.empty(); }

  /// Heads [first, first + count) of every state.
  [[nodiscard]] JRT_DETAIL_HD constexpr StateSlots slice_heads(std::int64_t first, std::int64_t count) const {
    return {pool.slice_heads(first, count), slots};
  }

  [[nodiscard]] JRT_DETAIL_HD constexpr std::int64_t slot(std::int64_t sequence) const {
    return slots == nullptr ? sequence : slots[sequence];
  }
  /// Whether a sequence's slot is in the pool: false for `skip_slot`, and for an index outside the pool, which backends
  /// that can read the array have rejected before.
  [[nodiscard]] JRT_DETAIL_HD constexpr bool has_slot(std::int64_t sequence) const {
    return slot(sequence) >= 0 && slot(sequence) < pool.slots;
  }
};

namespace detail {

/// Whether sequence b starts from a state; otherwise it starts empty, whatever its slot is.
template <class Format>
JRT_DETAIL_HD constexpr bool reads_initial_state(const StateSlots<Format>& initial, const std::uint8_t* has_initial_state,
                                                 std::int64_t b) {
  return !initial.empty() && (has_initial_state == nullptr || has_initial_state[b] != 0);
}

/// Whether sequence b is skipped by a call from `initial` to `final` states. An initial slot counts only if it is read.
/// Their formats differ where the final one is a gradient.
template <class InitialFormat, class FinalFormat>
JRT_DETAIL_HD constexpr bool sequence_skipped(const StateSlots<InitialFormat>& initial,
                                              const std::uint8_t* has_initial_state, const StateSlots<FinalFormat>& final,
                                              std::int64_t b) {
  const bool reads = reads_initial_state(initial, has_initial_state, b);
  return (reads && !initial.has_slot(b)) || (!final.empty() && !final.has_slot(b));
}

/// Whether sequence b is skipped by a backward pass, so that its gradients are 0: any state that the call would use has no
/// slot.
template <class Args>
JRT_DETAIL_HD constexpr bool gradients_skipped(const Args& args, std::int64_t b) {
  return sequence_skipped(args.initial_state, args.has_initial_state, args.final_state_gradient, b) ||
         (!args.initial_state_gradient.empty() && !args.initial_state_gradient.has_slot(b));
}

}  // namespace detail

/// Owning pool in host memory, 64-byte aligned, cleared. Move-only.
template <class Format>
class StatePool {
 public:
  StatePool() = default;

  /// Makes `pool` hold `slots` cleared slots of `heads` heads; leaves `pool` unchanged on failure.
  static Status allocate(std::int64_t slots, std::int64_t heads, StatePool& pool) {
    if (slots < 0 || heads < 1) {
      return Status::error(StatusCode::invalid_argument,
                           "StatePool: slots = %lld and heads = %lld, but slots must be at least 0 and heads at least 1.",
                           static_cast<long long>(slots), static_cast<long long>(heads));
    }
    constexpr std::int64_t most = PTRDIFF_MAX;
    const bool countable = heads <= most / Format::slot_bytes(1) && slots <= most / Format::slot_bytes(heads);
    const std::size_t bytes = countable ? static_cast<std::size_t>(slots * Format::slot_bytes(heads)) : 0;
    Memory memory(countable ? static_cast<std::byte*>(::operator new(bytes, alignment, std::nothrow)) : nullptr);
    if (memory == nullptr) {
      return Status::error(
          StatusCode::out_of_memory, "StatePool: no memory for slots = %lld of heads = %lld, each head of %lld bytes.",
          static_cast<long long>(slots), static_cast<long long>(heads), static_cast<long long>(Format::slot_bytes(1)));
    }
    std::memset(memory.get(), 0, bytes);
    pool.memory_ = std::move(memory);
    pool.slots_ = slots;
    pool.heads_ = heads;
    return {};
  }

  [[nodiscard]] StatePoolView<Format> view() {
    return view_pool<Format>(reinterpret_cast<typename Format::Scalar*>(memory_.get()), slots_, heads_);
  }
  [[nodiscard]] std::int64_t slots() const { return slots_; }
  [[nodiscard]] std::int64_t heads() const { return heads_; }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, alignment); }
  };
  using Memory = std::unique_ptr<std::byte, Free>;

  Memory memory_;
  std::int64_t slots_ = 0;
  std::int64_t heads_ = 0;
};

namespace detail {

/// State format of a mixer; the mixer's header specialises this.
template <class Config>
struct FormatOf;

/// A configuration that is part of another mixer names its own format, which places its state in that mixer's state.
template <class Config>
struct KeptFormat : FormatOf<Config> {};
template <class Config>
requires requires {
  typename Config::PartFormat;
}
struct KeptFormat<Config> {
  using type = typename Config::PartFormat;
};

}  // namespace detail

/// State format of a mixer. For linear attention it does not depend on mask, normaliser, padding or split, so operators
/// that differ only in those can share states.
template <class Config>
using StateFormatOf = typename detail::KeptFormat<Config>::type;

}  // namespace jrt
