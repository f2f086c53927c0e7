// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/distributed/rows.cuh"
#include "jrt/detail/cuda/state/backend.cuh"
#include "jrt/detail/cuda/state/operations.cuh"
#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/halo.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/execution/cuda.cuh"
#include "jrt/numeric.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// One value of one list of codes (distributed/linear_plan.hpp).
template <class Format>
struct ScanSums {
  static constexpr std::int64_t numbers = Format::head_elements;
  StateScan scan;
  StatePoolView<Format> sums;
  StatePoolView<Format> states;

  __device__ void operator()(std::int64_t list, std::int64_t h, std::int64_t i) const {
    using Scalar = typename Format::Scalar;
    constexpr int loads = state_scan_tuning.loads_in_flight;
    Scalar running{};
    const bool padding = i >= Format::head_values;
    const std::int32_t end = scan.offsets[list + 1];
    for (std::int32_t first = scan.offsets[list]; first < end; first += loads) {
      std::int32_t codes[loads];
      Scalar values[loads];
#pragma unroll
      for (int c = 0; c < loads; ++c) {
        codes[c] = first + c < end ? scan.codes[first + c] : 0;
      }
#pragma unroll
      for (int c = 0; c < loads; ++c) {
        values[c] = first + c < end && codes[c] >= 0 && !padding ? sums.head(codes[c], h)[i] : Scalar{};
      }
#pragma unroll
      for (int c = 0; c < loads; ++c) {
        if (first + c < end && codes[c] < 0) {
          states.head(~codes[c], h)[i] = running;
        } else {
          running += values[c];
        }
      }
    }
  }
};

template <class Format>
struct SetCounts {
  static constexpr std::int64_t numbers = 1;
  StateSlots<Format> rings;
  const std::int32_t* counts;

  __device__ void operator()(std::int64_t b, std::int64_t h, std::int64_t /*i*/) const {
    if (auto* const head = head_or_null(rings, b, h); head != nullptr) {
      *reinterpret_cast<std::int64_t*>(head + Format::count_offset) = joined(counts[2 * b], counts[2 * b + 1]);
    }
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda

namespace jrt::detail {

/// What context-parallel calls do beside the operations of mixers, on a GPU; everything is enqueued on the stream.
template <>
struct ContextBackend<Cuda> {
  /// Tokens of which segments are made: a multiple of what kernels work on at a time.
  template <class Config>
  static constexpr std::int64_t segment_chunk = 64;
  /// Blocks that a device holds, and how many segments make it worth to read tokens twice (cuda/core/tuning.cuh).
  static std::int64_t segment_workers(const Cuda& on) { return std::int64_t{2} * on.multiprocessors(); }
  static constexpr std::int64_t min_segments = 3;

  /// By the portable kernels: a block of Hopper's own takes a whole multiprocessor, of which the prefill of many tokens
  /// leaves few, and reads a window's cache row by row (43 us for 128 tokens).
  static Cuda for_few_rows(const Cuda& on) { return Cuda(on.stream(), CudaKernels::portable); }

  template <class Format>
  static Status scan(const StateScan& scan, const StatePoolView<Format>& sums, const StatePoolView<Format>& states,
                     const Cuda& on) {
    return cuda::run_on_states("scan", cuda::ScanSums<Format>{scan, sums, states}, scan.count, states.heads, on);
  }

  template <class T>
  static Status copy_rows(const TensorView<const T>& from, const TensorView<T>& to, const Cuda& on) {
    return copy_two<T>(from, to, {}, {}, on);
  }
  template <class T>
  static Status copy_two(const TensorView<const T>& from, const TensorView<T>& to, const TensorView<const T>& second_from,
                         const TensorView<T>& second_to, const Cuda& on) {
    return cuda::copy_two_rows_of<T>({from, to}, {second_from, second_to}, on);
  }
  template <class T>
  static Status add_rows(const TensorView<const T>& from, const TensorView<T>& to, const Cuda& on) {
    return cuda::run_on_rows("add_rows", to, cuda::AddRows<T>{from}, on);
  }
  template <class T>
  static Status fill_rows(const TensorView<T>& to, T value, const Cuda& on) {
    return cuda::run_on_rows("fill_rows", to, cuda::FillRows<T>{value}, on);
  }

  template <class Format>
  static Status set_counts(const StateSlots<Format>& rings, const std::int32_t* counts, std::int64_t count,
                           const Cuda& on) {
    return cuda::run_on_states("set_counts", cuda::SetCounts<Format>{rings, counts}, count, rings.pool.heads, on);
  }

  /// The caches of halos, of the rows of each: `counts` are the tokens before them.
  static constexpr bool stores_rings = true;
  template <class Config>
  static Status store_rings(const RowTensors<const typename Config::Element>& halos, const std::int32_t* offsets,
                            const std::int32_t* counts, const StatePoolView<StateFormatOf<Config>>& rings,
                            std::int64_t count, const typename Config::Rotary& rotary, const Cuda& on) {
    const cuda::StoreRings<Config> work{halos.first, halos.second, offsets, counts, rings, rotary};
    return cuda::run_on_states("store_rings", work, count, rings.heads, on);
  }

  static Status copy_blocks(const void* from, std::int64_t from_stride, void* to, std::int64_t to_stride,
                            std::int64_t bytes, std::int64_t heads, const Cuda& on) {
    return cuda::device_status("copy_blocks",
                               cudaMemcpy2DAsync(to, static_cast<std::size_t>(to_stride), from,
                                                 static_cast<std::size_t>(from_stride), static_cast<std::size_t>(bytes),
                                                 static_cast<std::size_t>(heads), cudaMemcpyDeviceToDevice, on.stream()));
  }

  static Status upload(const void* from, void* to, std::size_t bytes, const Cuda& on) {
    return cuda::device_status("place", cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, on.stream()));
  }
};

}  // namespace jrt::detail
