// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/sm90/target.cuh"
#include "jrt/detail/cuda/linear/engine_prefill.cuh"
#include "jrt/detail/cuda/linear/sm90/split_engine.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_engine.cuh"

/// Prefill on the matrix unit of sm_90a with WarpgroupEngine or SplitEngine.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

template <class Config, bool splits = SplitLayout<Config>::supported>
struct WarpgroupEngineChoice {
  using type = WarpgroupEngine<Config>;
};
template <class Config>
struct WarpgroupEngineChoice<Config, true> {
  using type = SplitEngine<Config>;
};
template <class Config>
using WarpgroupEngineOf = typename WarpgroupEngineChoice<Config>::type;

template <class Config>
inline constexpr bool warpgroups_support = WarpgroupLayout<Config>::supported || SplitLayout<Config>::supported;

template <class Config>
using WarpgroupCall = PrefillCall<Config, WarpgroupEngineOf<Config>>;

/// Called by all threads before anything else.
template <class Config>
__device__ void check_shared_memory() {
  if (shared_address(hopper_shared_memory) != WarpgroupEngineOf<Config>::Layout::base) {
    __trap();  // all addresses assume it
  }
}

template <class Config>
__global__ void __launch_bounds__(hopper_threads<WarpgroupEngineOf<Config>::threads>, 1)
    segment_sums_by_warpgroups(const __grid_constant__ WarpgroupCall<Config> call) {
  if constexpr (compiling_for_hopper) {
    check_shared_memory<Config>();
    sum_segment(call, hopper_shared_memory);
  }
}

template <class Config>
__global__ void __launch_bounds__(hopper_threads<WarpgroupEngineOf<Config>::threads>, 1)
    segment_outputs_by_warpgroups(const __grid_constant__ WarpgroupCall<Config> call) {
  if constexpr (compiling_for_hopper) {
    check_shared_memory<Config>();
    output_segment(call, hopper_shared_memory);
  }
}

template <class Config>
struct WarpgroupKernels {
  using Call = WarpgroupCall<Config>;
  static constexpr auto sums = segment_sums_by_warpgroups<Config>;
  static constexpr auto outputs = segment_outputs_by_warpgroups<Config>;
};

template <class Config>
class WarpgroupPrefill : public EnginePrefill<WarpgroupKernels<Config>> {
 public:
  using EnginePrefill<WarpgroupKernels<Config>>::EnginePrefill;

  /// Whether kernels for this operator and device exist and are compiled.
  static bool available(const Cuda& on) {
    return on.compute_capability() == 90 &&
           on.reserved_shared_bytes() == static_cast<int>(WarpgroupEngineOf<Config>::Layout::base) &&
           kernel_exists<segment_outputs_by_warpgroups<Config>, WarpgroupEngineOf<Config>::threads>();
  }
  /// Whether the kernels can read the tensors: any.
  [[nodiscard]] static bool describe_tensors() { return true; }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
