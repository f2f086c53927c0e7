// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/backend.hpp"

/// Which kernels serve a call: on a GPU that depends on operator, device, tensors and what the translation unit is compiled
/// for.
namespace jrt {

/// Kinds of kernels. A call has several where parts of it run on different ones, and none if it would be refused.
struct KernelKinds {
  bool cpu = false;             ///< the CPU backend's
  bool hopper = false;          ///< Hopper's own: compiled for sm_90a, on a GPU of compute capability 9.0
  bool matrix_units = false;    ///< on matrix units of any GPU from sm_80 on
  bool ordinary_units = false;  ///< on ordinary units of any GPU

  [[nodiscard]] constexpr bool any() const { return cpu || hopper || matrix_units || ordinary_units; }
  friend constexpr bool operator==(const KernelKinds&, const KernelKinds&) = default;
  friend constexpr KernelKinds operator|(const KernelKinds& a, const KernelKinds& b) {
    return {a.cpu || b.cpu, a.hopper || b.hopper, a.matrix_units || b.matrix_units, a.ordinary_units || b.ordinary_units};
  }
};

/// The kernels on which a call of an operation with these arguments would run its work on tokens, as the operation itself
/// selects them: the tensors' addresses and strides count. Launches nothing. For stacks ask for each layer's call.
///
///     if (!jrt::kernels_of(args, on).hopper) { log("portable kernels: compiled for 90 instead of 90a?"); }
template <template <class> class Args, class Config, class Execution>
[[nodiscard]] KernelKinds kernels_of(const Args<Config>& args, const Execution& on) {
  using Mixer = detail::MixerBackend<Config, Execution>;
  if (!Mixer::check(args).ok()) {
    return {};
  }
  if constexpr (requires { detail::Backend<Execution>::kernels; }) {
    return detail::Backend<Execution>::kernels;
  } else {
    return Mixer::kernels(args, on);
  }
}

}  // namespace jrt
