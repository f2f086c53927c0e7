// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/linear/backward_portable.cuh"
#include "jrt/detail/cuda/linear/sm90/backward.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/kernels.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// A backward pass on the kernels for sm_90a if operator, device and tensors allow them, and on the portable kernels
/// otherwise.
template <class Config>
class Backward {
 public:
  Backward(const BackwardArgs<Config>& args, std::int64_t sequences, const Cuda& on)
      : portable_(args, sequences, on),
        hopper_(args, sequences, args.key.heads, on),
        may_take_hopper_(on.kernels() == CudaKernels::automatic && Hopper::available(on)),
        on_hopper_(may_take_hopper_ && Hopper::serves(args)) {}

  [[nodiscard]] KernelKinds kernels() const {
    return on_hopper_ ? KernelKinds{.hopper = true} : KernelKinds{.ordinary_units = true};
  }

  /// The larger of both: the tensors' addresses are not known when the workspace is sized.
  [[nodiscard]] std::size_t workspace_bytes() const {
    const std::size_t bytes = counted_bytes(portable_);
    return may_take_hopper_ ? larger(bytes, counted_bytes(hopper_)) : bytes;
  }

  void take(Arena& arena) {
    if (on_hopper_) {
      hopper_.take(arena);
    } else {
      portable_.take(arena);
    }
  }

  Status run(const char* operation, const Cuda& on) const {
    return on_hopper_ ? hopper_.run(operation, on) : portable_.run(operation, on);
  }

 private:
  using Hopper = std::conditional_t<has_hopper_backward<Config>, HopperBackward<Config>, NoHopperBackward<Config>>;

  PortableBackward<Config> portable_;
  Hopper hopper_;
  bool may_take_hopper_;
  bool on_hopper_;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
