// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/linear/prefill_portable.cuh"
#include "jrt/detail/cuda/linear/sm90/prefill.cuh"
#include "jrt/detail/cuda/linear/sm90/warpgroup_prefill.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/kernels.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Placeholder for the Hopper kernels where an operator has none, or where they are not compiled.
template <class Config>
struct NoHopperPrefill {
  static bool available(const Cuda& /*on*/) { return false; }
  NoHopperPrefill(const PrefillInputOf<Config>&, std::int64_t, std::int64_t, const Cuda&) {}
  [[nodiscard]] static bool describe_tensors() { return false; }
  static void take(Arena& /*arena*/) {}
  static Status run(const char* /*operation*/, const Cuda& /*on*/) { return {}; }
};

/// A prefill on the kernels for sm_90a if operator, device and tensors allow them, and on the portable kernels otherwise.
template <class Config>
class Prefill {
 public:
  Prefill(const PrefillInputOf<Config>& args, std::int64_t sequences, std::int64_t heads, const Cuda& on)
      : portable_(args, sequences, heads, on),
        hopper_(args, sequences, heads, on),
        on_hopper_(on.kernels() == CudaKernels::automatic && Hopper::available(on)) {}

  /// The larger of both: the tensors' addresses are not known when the workspace is sized.
  [[nodiscard]] std::size_t workspace_bytes() const {
    const std::size_t bytes = counted_bytes(portable_);
    return on_hopper_ ? larger(bytes, counted_bytes(hopper_)) : bytes;
  }

  /// Selects the kernels for the tensors, which exist by now.
  void select() { on_hopper_ = on_hopper_ && hopper_.describe_tensors(); }

  /// Selects the kernels and takes their workspace.
  void take(Arena& arena) {
    select();
    if (on_hopper_) {
      hopper_.take(arena);
    } else {
      portable_.take(arena);
    }
  }

  /// The selected kernels.
  [[nodiscard]] KernelKinds kernels() const { return on_hopper_ ? KernelKinds{.hopper = true} : portable_kernels<Config>; }

  /// See MixerBackend::run_after_scan.
  void follow_scan(bool even) {
    if constexpr (requires { hopper_.follow_scan(even); }) {
      hopper_.follow_scan(even);
    }
  }

  /// Two calls without queries, in one launch if that is possible. Both have their workspace.
  static Status run_both(const char* operation, const Prefill& first, const Prefill& second, const Cuda& on) {
    if constexpr (requires { Hopper::run_sums(operation, first.hopper_, &second.hopper_, on); }) {
      if (first.on_hopper_ && second.on_hopper_ && first.hopper_.only_sums() && second.hopper_.only_sums()) {
        return Hopper::run_sums(operation, first.hopper_, &second.hopper_, on);
      }
    }
    const Status status = first.run(operation, on);
    return status.ok() ? second.run(operation, on) : status;
  }

  Status run(const char* operation, const Cuda& on) const {
    return on_hopper_ ? hopper_.run(operation, on) : portable_.run(operation, on);
  }

 private:
  static constexpr bool may_have_hopper = targets_hopper && !consumes_evicted_keys<Config>;
  using Warpgroups =
      std::conditional_t<may_have_hopper && warpgroups_support<Config>, WarpgroupPrefill<Config>, NoHopperPrefill<Config>>;
  using Hopper = std::conditional_t<may_have_hopper && HopperLayout<Config>::supported, HopperPrefill<Config>, Warpgroups>;

  PortablePrefill<Config> portable_;
  Hopper hopper_;
  bool on_hopper_;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
