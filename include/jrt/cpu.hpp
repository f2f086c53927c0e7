// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/cpu/gated_convolution.hpp"
#include "jrt/cpu/hybrid_attention.hpp"
#include "jrt/cpu/linear_attention.hpp"
#include "jrt/cpu/window_attention.hpp"
#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/detail/shared/stack/backend.hpp"
#include "jrt/execution/cpu.hpp"

/// The CPU backend of all mixers (cpu/ has one header for each) and of stacks. It includes Eigen/Core (for its SIMD
/// packets); no other part of the library does.
namespace jrt {

inline namespace JRT_DETAIL_CPU_ABI {

/// Bytes of the SIMD vectors that the CPU backend computes with, as selected by the compiler's flags: 16 on x86-64 by
/// default (SSE2), 32 with AVX, 64 with AVX-512. An engine can assert the width that it is meant to be compiled for.
inline constexpr int cpu_vector_bytes = detail::cpu::lanes<float> * static_cast<int>(sizeof(float));

}  // namespace JRT_DETAIL_CPU_ABI

}  // namespace jrt
