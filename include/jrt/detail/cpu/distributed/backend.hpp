// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/cpu/state/backend.hpp"
#include "jrt/detail/distributed/backend.hpp"
#include "jrt/execution/cpu.hpp"
#include "jrt/numeric.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

namespace jrt::detail {

/// What context-parallel calls do beside the operations of mixers, on the CPU.
template <Executor E>
struct ContextBackend<Cpu<E>> {
  using On = Cpu<E>;

  /// Tokens of which segments are made.
  template <class Config>
  static constexpr std::int64_t segment_chunk = cpu::chunk_tokens;
  /// Threads, and how many segments make it worth to read tokens twice.
  static std::int64_t segment_workers(const On& on) { return workers_of(on); }
  static constexpr std::int64_t min_segments = 2;
  static constexpr bool sums_at_once(const On& /*on*/) { return false; }

  static constexpr bool window_leaves_room(std::int64_t /*rows*/) { return true; }
  /// Where a prefill of few tokens runs, beside one of many.
  static const On& for_few_rows(const On& on) { return on; }

  /// Lists of codes (distributed/linear_plan.hpp) for all heads: sums in `sums`, results in `states`.
  template <class Format>
  static Status scan(const StateScan& scan, const StatePoolView<Format>& sums, const StatePoolView<Format>& states,
                     bool /*follows_kernel*/, const On& on) {
    using Scalar = typename Format::Scalar;
    on.executor().run(scan.count * states.heads, [&](std::int64_t task, int /*worker*/) {
      const std::int64_t head = task % states.heads;
      const std::int32_t* const begin = scan.codes + scan.offsets[task / states.heads];
      const std::int32_t* const end = scan.codes + scan.offsets[task / states.heads + 1];
      constexpr std::int64_t block = 512;
      Scalar running[block];
      for (std::int64_t first = 0; first < Format::head_values; first += block) {
        const std::int64_t count = smaller(block, Format::head_values - first);
        std::memset(running, 0, sizeof running);
        for (const std::int32_t* code = begin; code != end; ++code) {
          if (*code >= 0) {
            const Scalar* const sum = sums.head(*code, head) + first;
            for (std::int64_t i = 0; i < count; ++i) {
              running[i] += sum[i];
            }
          } else {
            std::memcpy(states.head(~*code, head) + first, running, static_cast<std::size_t>(count) * sizeof(Scalar));
          }
        }
      }
      for (const std::int32_t* code = begin; code != end; ++code) {
        if (*code < 0) {  // the padding of a state is 0, here and where it is copied to
          std::memset(states.head(~*code, head) + Format::head_values, 0,
                      static_cast<std::size_t>(Format::head_elements - Format::head_values) * sizeof(Scalar));
        }
      }
    });
    return {};
  }

  /// Rows of tokens and heads; views of equal extents with batch = 1.
  template <class T>
  static Status copy_rows(const TensorView<const T>& from, const TensorView<T>& to, const On& /*on*/) {
    for (std::int64_t t = 0; t < to.tokens; ++t) {
      for (std::int64_t h = 0; h < to.heads; ++h) {
        std::memcpy(to.row(0, t, h), from.row(0, t, h), static_cast<std::size_t>(to.dim) * sizeof(T));
      }
    }
    return {};
  }
  /// Of two pairs of views, of which the second may be empty.
  template <class T>
  static Status copy_two(const TensorView<const T>& from, const TensorView<T>& to, const TensorView<const T>& second_from,
                         const TensorView<T>& second_to, const On& on) {
    const Status status = copy_rows(from, to, on);
    return status.ok() && second_to.heads > 0 ? copy_rows(second_from, second_to, on) : status;
  }
  template <class T>
  static Status add_rows(const TensorView<const T>& from, const TensorView<T>& to, const On& /*on*/) {
    using Compute = ComputeType<T>;
    for (std::int64_t t = 0; t < to.tokens; ++t) {
      for (std::int64_t h = 0; h < to.heads; ++h) {
        const T* const source = from.row(0, t, h);
        T* const row = to.row(0, t, h);
        for (std::int64_t i = 0; i < to.dim; ++i) {
          row[i] = convert<T>(convert<Compute>(row[i]) + convert<Compute>(source[i]));
        }
      }
    }
    return {};
  }
  template <class T>
  static Status fill_rows(const TensorView<T>& to, T value, const On& /*on*/) {
    for (std::int64_t t = 0; t < to.tokens; ++t) {
      for (std::int64_t h = 0; h < to.heads; ++h) {
        for (std::int64_t i = 0; i < to.dim; ++i) {
          to.row(0, t, h)[i] = value;
        }
      }
    }
    return {};
  }

  /// Sets the token counts of rings: those of state i are the 64 bits of counts[2 i], the lower half, and counts[2 i + 1].
  template <class Format>
  static Status set_counts(const StateSlots<Format>& rings, const std::int32_t* counts, std::int64_t count,
                           const On& /*on*/) {
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t tokens = joined(counts[2 * i], counts[2 * i + 1]);
      for (std::int64_t h = 0; h < rings.pool.heads; ++h) {
        void* const count_of_head =
            rings.pool.head(rings.slot(i), h) + Format::count_offset;  // of a type of 16 bits, perhaps
        std::memcpy(count_of_head, &tokens, sizeof tokens);
      }
    }
    return {};
  }

  /// `heads` blocks of `bytes` bytes.
  static Status copy_blocks(const void* from, std::int64_t from_stride, void* to, std::int64_t to_stride,
                            std::int64_t bytes, std::int64_t heads, const On& /*on*/) {
    for (std::int64_t h = 0; h < heads; ++h) {
      std::memcpy(static_cast<std::byte*>(to) + h * to_stride, static_cast<const std::byte*>(from) + h * from_stride,
                  static_cast<std::size_t>(bytes));
    }
    return {};
  }

  static Status upload(const void* from, void* to, std::size_t bytes, const On& /*on*/) {
    std::memcpy(to, from, bytes);
    return {};
  }
};

}  // namespace jrt::detail
