// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/backend.hpp"
#include "jrt/detail/check/states.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/state/operations.cuh"
#include "jrt/detail/shared/state/saved_states.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The operations on whole states: check the arguments as far as the host can see them, enqueue.
struct StateBackend {
  template <class Format>
  static Status clear_states(const StateSlots<Format>& states, std::int64_t count, const Cuda& on) {
    Checker check("clear_states");
    check_slots(check, "states", states, count, states.pool.heads);
    return run(check, "clear_states", ClearStates<Format>{states}, count, states.pool.heads, on);
  }

  template <class From, class To>
  static Status copy_states(const StateSlots<From>& source, const StateSlots<To>& destination, std::int64_t count,
                            const Cuda& on) {
    static_assert(convertible_formats<From, To>,
                  "copy_states: states convert only between storage types and between packings of one Taylor map; these "
                  "formats have different feature maps, input or value dimensions.");
    Checker check("copy_states");
    check_slots(check, "source", source, count, source.pool.heads);
    check_slots(check, "destination", destination, count, source.pool.heads);
    if constexpr (!std::is_same_v<From, To>) {
      // A conversion moves every element, so it cannot be done in place.
      if (check.ok() && memory_of(source.pool).overlaps(memory_of(destination.pool))) {
        check.take(
            Status::error(StatusCode::invalid_argument,
                          "copy_states: the pools of 'source' and 'destination' overlap, but their formats differ."));
      }
    }
    return run(check, "copy_states", CopyStates<From, To>{source, destination}, count, source.pool.heads, on);
  }

  template <class Format>
  static Status merge_states(const StateSlots<Format>& source, const StateSlots<Format>& destination, std::int64_t count,
                             const Cuda& on) {
    Checker check("merge_states");
    check_slots(check, "source", source, count, source.pool.heads);
    check_slots(check, "destination", destination, count, source.pool.heads);
    return run(check, "merge_states", MergeStates<Format>{source, destination}, count, source.pool.heads, on);
  }

  template <class Format, class Scalar>
  static Status export_states(const StateSlots<Format>& source, const DenseStates<Scalar>& destination, std::int64_t count,
                              const Cuda& on) {
    Checker check("export_states");
    check_slots(check, "source", source, count, source.pool.heads);
    check_dense_written<Format>(check, destination, count, source.pool.heads);
    return run(check, "export_states", ExportStates<Format, Scalar>{source, destination}, count, source.pool.heads, on);
  }

  template <class Format, class Scalar>
  static Status import_states(const DenseStates<Scalar>& source, const StateSlots<Format>& destination, std::int64_t count,
                              const Cuda& on) {
    Checker check("import_states");
    check_slots(check, "destination", destination, count, destination.pool.heads);
    check_dense<Format>(check, "source.sums", "source.normaliser", source);
    return run(check, "import_states", ImportStates<Format, Scalar>{source, destination}, count, destination.pool.heads,
               on);
  }

  template <class Format>
  static Status save_states(const StateSlots<Format>& source, std::int64_t count, std::span<std::byte> buffer,
                            const Cuda& on) {
    Checker check("save_states");
    check_slots(check, "source", source, count, source.pool.heads);
    check_save_buffer<Format>(check, buffer, count, source.pool.heads);
    if (!check.ok()) {
      return check.status();
    }
    return with_packed<Format>("save_states", count, source.pool.heads, on, [&](auto* packed, std::size_t bytes) {
      write_saved_headers<Format>(buffer, count, source.pool.heads);
      const Status status =
          run_on_states("save_states", GatherStates<Format>{source, packed}, count, source.pool.heads, on);
      return !status.ok()
                 ? status
                 : device_status("save_states", cudaMemcpyAsync(buffer.data() + saved_headers_bytes<Format>, packed, bytes,
                                                                cudaMemcpyDeviceToHost, on.stream()));
    });
  }

  template <class Format>
  static Status load_states(std::span<const std::byte> buffer, const StateSlots<Format>& destination, std::int64_t count,
                            const Cuda& on) {
    Checker check("load_states");
    check_slots(check, "destination", destination, count, destination.pool.heads);
    if (check.ok()) {
      check.take(check_saved_states<Format>(buffer, count, destination.pool.heads));
    }
    if (!check.ok()) {
      return check.status();
    }
    return with_packed<Format>("load_states", count, destination.pool.heads, on, [&](auto* packed, std::size_t bytes) {
      const Status status = device_status(
          "load_states",
          cudaMemcpyAsync(packed, buffer.data() + saved_headers_bytes<Format>, bytes, cudaMemcpyHostToDevice, on.stream()));
      return !status.ok() ? status
                          : run_on_states("load_states", ScatterStates<Format>{packed, destination}, count,
                                          destination.pool.heads, on);
    });
  }

 private:
  template <class Format>
  static void check_slots(Checker& check, const char* argument, const StateSlots<Format>& states, std::int64_t count,
                          std::int64_t heads) {
    check_states_shape(check, argument, states, count, heads);
    check.implicit_slots(argument, states, count);
  }

  template <class Format>
  static Checker::StateMemory memory_of(const StatePoolView<Format>& pool) {
    const auto begin = reinterpret_cast<std::uintptr_t>(pool.data);
    const auto scalar = static_cast<std::int64_t>(sizeof(typename Format::Scalar));
    const std::int64_t bytes =
        pool.slots > 0 ? (pool.slots - 1) * pool.slot_stride * scalar + Format::slot_bytes(pool.heads) : 0;
    return {begin, begin + static_cast<std::uintptr_t>(bytes), 0};
  }

  template <class Work>
  static Status run(const Checker& check, const char* operation, const Work& work, std::int64_t count, std::int64_t heads,
                    const Cuda& on) {
    return check.ok() ? run_on_states(operation, work, count, heads, on) : check.status();
  }

  /// Runs `operation(packed, bytes)` with stream-ordered memory for the values of `count` states.
  template <class Format, class Operation>
  static Status with_packed(const char* name, std::int64_t count, std::int64_t heads, const Cuda& on,
                            const Operation& operation) {
    const std::size_t bytes = saved_head_bytes<Format> * static_cast<std::size_t>(count * heads);
    return with_stream_workspace(name, bytes, on, [&](const Workspace& workspace) {
      return operation(static_cast<typename Format::Scalar*>(workspace.data), bytes);
    });
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda

namespace jrt::detail {

template <>
struct Backend<Cuda> : cuda::StateBackend {
  static constexpr bool host_reads_arrays = false;

  /// Runs `operation` with stream-ordered memory.
  template <class Operation>
  static Status with_workspace(std::size_t bytes, const Cuda& on, const Operation& operation) {
    return cuda::with_stream_workspace("workspace", bytes, on, operation);
  }
};

}  // namespace jrt::detail
