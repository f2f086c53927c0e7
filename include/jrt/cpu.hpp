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

/// The CPU backend of all mixers (cpu/ has one header for each) and of stacks. It brings in Eigen/Core (for its SIMD
/// packets); nothing else of the library does.
namespace jrt {

inline namespace JRT_DETAIL_CPU_ABI {

/// Bytes of the vectors that the CPU backend computes with, which follow from the compiler's flags: 16 on x86-64 where they
/// say nothing (SSE2), 32 with AVX, 64 with AVX-512. An engine can assert what it was to be compiled for.
inline constexpr int cpu_vector_bytes = detail::cpu::lanes<float> * static_cast<int>(sizeof(float));

}  // namespace JRT_DETAIL_CPU_ABI

}  // namespace jrt
