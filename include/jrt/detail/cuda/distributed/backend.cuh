// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/backend.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/distributed/rows.cuh"
#include "jrt/detail/cuda/state/backend.cuh"
#include "jrt/detail/cuda/state/operations.cuh"
#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/distributed/halo.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/early_start.cuh"
#include "jrt/execution/cuda.cuh"
#include "jrt/numeric.hpp"
#include "jrt/prefill.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <class Format>
inline constexpr std::int64_t scan_blocks =
    ceil_div<std::int64_t>(Format::head_elements* static_cast<std::int64_t>(sizeof(typename Format::Scalar)),
                           std::int64_t{state_threads} * access_bytes);

/// Lists of codes (distributed/linear_plan.hpp): a thread has some neighbouring numbers of one head and list. Codes are
/// read once for a block, so that sums can be asked for before the ones before them have arrived.
template <class Format>
__global__ void __launch_bounds__(state_threads)
    scan_sums(const __grid_constant__ StateScan scan, const __grid_constant__ StatePoolView<Format> sums,
              const __grid_constant__ StatePoolView<Format> states) {
  using Scalar = typename Format::Scalar;
  constexpr int each = access_bytes / static_cast<int>(sizeof(Scalar));
  constexpr int loads = state_scan_tuning.loads_in_flight;
  constexpr int most_codes = 256;
  static_assert(Format::head_elements % each == 0);
  __shared__ std::int32_t codes[most_codes];
  const std::int64_t blocks = scan_blocks<Format>;
  const std::int64_t head = blockIdx.x / blocks % sums.heads;
  const std::int64_t list = blockIdx.x / blocks / sums.heads;
  const std::int64_t i = (blockIdx.x % blocks * state_threads + threadIdx.x) * each;
  Vector<Scalar, each> running{};
  await_previous_kernel();
  let_next_kernel_start();  // what it reads without waiting is older than this kernel
  const std::int32_t end = scan.offsets[list + 1];
  for (std::int32_t begin = scan.offsets[list]; begin < end; begin += most_codes) {
    const int count = smaller(end - begin, most_codes);
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.x); c < count; c += state_threads) {
      codes[c] = scan.codes[begin + c];
    }
    __syncthreads();
    for (int first = 0; i < Format::head_elements && first < count; first += loads) {
      Vector<Scalar, each> values[loads];
#pragma unroll
      for (int c = 0; c < loads; ++c) {
        values[c] = {};
        if (first + c < count && codes[first + c] >= 0) {
          values[c] = load_vector<each>(sums.head(codes[first + c], head) + i);
        }
      }
#pragma unroll
      for (int c = 0; c < loads; ++c) {
        if (first + c < count && codes[first + c] < 0) {
          store_vector(states.head(~codes[first + c], head) + i, running);
        }
#pragma unroll
        for (int n = 0; n < each; ++n) {
          running[n] = i + n < Format::head_values ? running[n] + values[c][n] : Scalar{};  // the padding of a state is 0
        }
      }
    }
  }
}

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
  /// Tokens of which segments are made: what most kernels work on at a time. (Those for wide states take 128 or 192.)
  template <class Config>
  static constexpr std::int64_t segment_chunk = 64;
  /// Blocks that a device holds, and how many segments make it worth to read tokens twice (cuda/core/tuning.cuh).
  static std::int64_t segment_workers(const Cuda& on) { return std::int64_t{2} * on.multiprocessors(); }
  static constexpr std::int64_t min_segments = 3;
  /// Whether most operators' sums of tokens and encoder tokens are formed by one kernel (cuda/linear/sm90/sums.cuh).
  static bool sums_at_once(const Cuda& on) { return on.compute_capability() == 90; }

  /// Many rows go in a few rounds of long blocks, each on a multiprocessor of its own, which an exchange beside them would
  /// wait for, or delay (524288 tokens, 16 heads: 1.52 ms in order, 1.63 beside; 32768: 0.15 and 0.12).
  static constexpr bool window_leaves_room(std::int64_t rows) { return rows < (std::int64_t{1} << 21); }
  /// By the portable kernels: a block of Hopper's own takes a whole multiprocessor, of which the prefill of many tokens
  /// leaves few, and reads a window's cache row by row (43 us for 128 tokens, under a profiler).
  static Cuda for_few_rows(const Cuda& on) { return on.with(CudaKernels::portable); }

  /// All tokens of windows and convolutions but the first `edge_tokens[piece]` of each piece; null: all.
  template <class Config>
  static Status prefill_without_edges(const PrefillArgs<Config>& args, const std::int32_t* edge_tokens, const Cuda& on) {
    return MixerBackend<Config, Cuda>::run_without_first(args, edge_tokens, on);
  }

  /// `follows_kernel`: the last work on the stream is a kernel of the library, so that this one may start early.
  template <class Format>
  static Status scan(const StateScan& scan, const StatePoolView<Format>& sums, const StatePoolView<Format>& states,
                     bool follows_kernel, const Cuda& on) {
    return cuda::launch("scan", cuda::scan_sums<Format>,
                        {scan.count * sums.heads * cuda::scan_blocks<Format>, cuda::state_threads, 0,
                         follows_kernel && cuda::can_start_early<cuda::scan_sums<Format>>(on)},
                        on, scan, sums, states);
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
