// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/states.hpp"
#include "jrt/detail/cpu/state/exchange.hpp"
#include "jrt/detail/cpu/state/operations.hpp"
#include "jrt/execution/cpu.hpp"
#include "jrt/kernels.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// The operations on whole states: check the arguments, hand heads to the executor.
template <Executor E>
struct StateBackend {
  template <class Format>
  static Status clear_states(const StateSlots<Format>& states, std::int64_t count, const Cpu<E>& on) {
    Checker check("clear_states");
    check_states(check, "states", states, count, states.pool.heads);
    check_apart(check, states, "states.slots", states, count);
    return for_heads(check, states.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      if (states.slot(b) != skip_slot) {
        cpu::clear_head<Format>(states.pool.head(states.slot(b), h));
      }
    });
  }

  template <class From, class To>
  static Status copy_states(const StateSlots<From>& source, const StateSlots<To>& destination, std::int64_t count,
                            const Cpu<E>& on) {
    static_assert(convertible_formats<From, To>,
                  "copy_states: states convert only between storage types and between packings of one Taylor map; these "
                  "formats have different feature maps, input or value dimensions.");
    Checker check("copy_states");
    check_states(check, "source", source, count, source.pool.heads);
    check_states(check, "destination", destination, count, source.pool.heads);
    check_apart(check, source, "destination.slots", destination, count);
    if constexpr (!std::is_same_v<From, To>) {
      // A conversion moves every element, so it cannot be done in place.
      for (std::int64_t b = 0; check.ok() && b < count; ++b) {
        if (Checker::memory_of(source, b).overlaps(Checker::memory_of(destination, b))) {
          check.take(Status::error(StatusCode::invalid_argument,
                                   "copy_states: source and destination of pair %lld overlap, but their formats differ.",
                                   static_cast<long long>(b)));
        }
      }
    }
    return for_heads(check, source.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      if (source.slot(b) != skip_slot && destination.slot(b) != skip_slot) {
        cpu::copy_head<From, To>(source.pool.head(source.slot(b), h), destination.pool.head(destination.slot(b), h));
      }
    });
  }

  template <class Format>
  static Status merge_states(const StateSlots<Format>& source, const StateSlots<Format>& destination, std::int64_t count,
                             const Cpu<E>& on) {
    Checker check("merge_states");
    check_states(check, "source", source, count, source.pool.heads);
    check_states(check, "destination", destination, count, source.pool.heads);
    check_apart(check, source, "destination.slots", destination, count);
    return for_heads(check, source.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      if (source.slot(b) != skip_slot && destination.slot(b) != skip_slot) {
        cpu::merge_head<Format>(source.pool.head(source.slot(b), h), destination.pool.head(destination.slot(b), h));
      }
    });
  }

  template <class Format, class Scalar>
  static Status export_states(const StateSlots<Format>& source, const DenseStates<Scalar>& destination, std::int64_t count,
                              const Cpu<E>& on) {
    Checker check("export_states");
    check_states(check, "source", source, count, source.pool.heads);
    check_dense_written<Format>(check, destination, count, source.pool.heads);
    return for_heads(check, source.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      if (source.slot(b) != skip_slot) {
        cpu::export_head<Format>(source.pool.head(source.slot(b), h), dense_head(destination, b, h));
      }
    });
  }

  template <class Format, class Scalar>
  static Status import_states(const DenseStates<Scalar>& source, const StateSlots<Format>& destination, std::int64_t count,
                              const Cpu<E>& on) {
    Checker check("import_states");
    check_states(check, "destination", destination, count, destination.pool.heads);
    check_apart(check, destination, "destination.slots", destination, count);
    check_dense<Format>(check, "source.sums", "source.normaliser", source);
    return for_heads(check, destination.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      if (destination.slot(b) != skip_slot) {
        cpu::import_head<Format>(dense_head(source, b, h), destination.pool.head(destination.slot(b), h));
      }
    });
  }

  template <class Format>
  static Status save_states(const StateSlots<Format>& source, std::int64_t count, std::span<std::byte> buffer,
                            const Cpu<E>& on) {
    Checker check("save_states");
    check_states(check, "source", source, count, source.pool.heads);
    check_save_buffer<Format>(check, buffer, count, source.pool.heads);
    if (check.ok()) {
      write_saved_headers<Format>(buffer, count, source.pool.heads);
    }
    return for_heads(check, source.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      std::byte* const to = buffer.data() + saved_offset<Format>(b, h, source.pool.heads);
      if (source.slot(b) != skip_slot) {
        std::memcpy(to, source.pool.head(source.slot(b), h), saved_head_bytes<Format>);
      } else {
        std::memset(to, 0, saved_head_bytes<Format>);
      }
    });
  }

  template <class Format>
  static Status load_states(std::span<const std::byte> buffer, const StateSlots<Format>& destination, std::int64_t count,
                            const Cpu<E>& on) {
    Checker check("load_states");
    check_states(check, "destination", destination, count, destination.pool.heads);
    check_apart(check, destination, "destination.slots", destination, count);
    if (check.ok()) {
      check.take(check_saved_states<Format>(buffer, count, destination.pool.heads));
    }
    return for_heads(check, destination.pool.heads, count, on, [&](std::int64_t b, std::int64_t h) {
      if (destination.slot(b) != skip_slot) {
        std::memcpy(destination.pool.head(destination.slot(b), h),
                    buffer.data() + saved_offset<Format>(b, h, destination.pool.heads), saved_head_bytes<Format>);
      }
    });
  }

 private:
  /// Checks pool, count and slots.
  template <class Format>
  static void check_states(Checker& check, const char* argument, const StateSlots<Format>& states, std::int64_t count,
                           std::int64_t heads) {
    check_states_shape(check, argument, states, count, heads);
    for (std::int64_t b = 0; check.ok() && b < count; ++b) {
      check.slot(argument, states, b);
    }
  }

  /// Checks that no other pair uses a slot that pair b writes; pairs with a skip_slot use none.
  template <class From, class To>
  static void check_apart(Checker& check, const StateSlots<From>& source, const char* destination_name,
                          const StateSlots<To>& destination, std::int64_t count) {
    if (!check.ok()) {
      return;
    }
    const auto memory = [&](const auto& states, std::int64_t b) {
      const bool skipped = source.slot(b) == skip_slot || destination.slot(b) == skip_slot;
      return skipped ? Checker::StateMemory{} : Checker::memory_of(states, b);
    };
    check.states_apart(
        "source.slots", [&](std::int64_t b) { return memory(source, b); }, destination_name,
        [&](std::int64_t b) { return memory(destination, b); }, count);
  }

  template <class Head>
  static Status for_heads(const Checker& check, std::int64_t heads, std::int64_t count, const Cpu<E>& on,
                          const Head& head) {
    if (check.ok()) {
      on.executor().run(count * heads, [&](std::int64_t task, int /*worker*/) { head(task / heads, task % heads); });
    }
    return check.status();
  }

  template <class Format>
  static std::size_t saved_offset(std::int64_t b, std::int64_t h, std::int64_t heads) {
    return saved_headers_bytes<Format> + static_cast<std::size_t>(b * heads + h) * saved_head_bytes<Format>;
  }
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu

namespace jrt::detail {

template <Executor E>
struct Backend<Cpu<E>> : cpu::StateBackend<E> {
  static constexpr bool host_reads_arrays = true;
  static constexpr KernelKinds kernels{.cpu = true};

  template <class Operation>
  static Status with_workspace(std::size_t bytes, const Cpu<E>& /*on*/, const Operation& operation) {
    return with_heap_workspace(bytes, operation);
  }
};

}  // namespace jrt::detail
