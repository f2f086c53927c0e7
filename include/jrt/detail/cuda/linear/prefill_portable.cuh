// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/linear/engine_prefill.cuh"
#include "jrt/detail/cuda/linear/mma_engine.cuh"
#include "jrt/detail/cuda/linear/simt_engine.cuh"
#include "jrt/kernels.hpp"

/// Prefill on every GPU from sm_80 on: the kernels of prefill_call.cuh with an engine that processes a segment.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Evicted keys come row by row from two places, which only SimtEngine can read.
template <class Config>
using PortableEngine = std::conditional_t<MmaEngine<Config>::supported && !consumes_evicted_keys<Config>, MmaEngine<Config>,
                                          SimtEngine<Config>>;

template <class Config>
inline constexpr KernelKinds portable_kernels{.matrix_units = std::is_same_v<PortableEngine<Config>, MmaEngine<Config>>,
                                              .ordinary_units = std::is_same_v<PortableEngine<Config>, SimtEngine<Config>>};

template <class Config>
using PortableCall = PrefillCall<Config, PortableEngine<Config>>;

extern __shared__ __align__(16) std::byte prefill_shared_memory[];

template <class Config>
__global__ void __launch_bounds__(PortableEngine<Config>::threads, PortableEngine<Config>::blocks_per_multiprocessor)
    segment_sums(const __grid_constant__ PortableCall<Config> call) {
  sum_segment(call, prefill_shared_memory);
}

template <class Config>
__global__ void __launch_bounds__(PortableEngine<Config>::threads, PortableEngine<Config>::blocks_per_multiprocessor)
    segment_outputs(const __grid_constant__ PortableCall<Config> call) {
  output_segment(call, prefill_shared_memory);
}

template <class Config>
struct PortableKernels {
  using Call = PortableCall<Config>;
  static constexpr auto sums = segment_sums<Config>;
  static constexpr auto outputs = segment_outputs<Config>;
};

template <class Config>
using PortablePrefill = EnginePrefill<PortableKernels<Config>>;

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
