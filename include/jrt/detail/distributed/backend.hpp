// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/host_device.hpp"

namespace jrt::detail {

/// Lists of codes, `count` of them, in memory that the executing device reads.
struct StateScan {
  const std::int32_t* offsets = nullptr;  // [count + 1]
  const std::int32_t* codes = nullptr;
  std::int64_t count = 0;
};

/// The 64-bit number of two halves, the lower first.
JRT_DETAIL_HD constexpr std::int64_t joined(std::int32_t low, std::int32_t high) {
  return (static_cast<std::int64_t>(high) << 32) | static_cast<std::uint32_t>(low);
}

/// What context-parallel calls need of an execution beside the operations of mixers and states: scans of sums, copies and
/// sums of rows. cpu/distributed and cuda/distributed specialise it.
template <class Execution>
struct ContextBackend {
  static_assert(
      always_false<Execution>,
      "jrt: there is no context-parallel backend for this execution argument. Include "
      "jrt/distributed/cpu.hpp and pass jrt::Cpu, or jrt/distributed/cuda.cuh (with a CUDA compiler) and jrt::Cuda.");
};

}  // namespace jrt::detail
