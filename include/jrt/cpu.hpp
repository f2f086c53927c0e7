// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/cpu/convolution/backend.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/detail/cpu/hybrid/backend.hpp"
#include "jrt/detail/cpu/linear/backend.hpp"
#include "jrt/detail/cpu/window/backend.hpp"
#include "jrt/detail/shared/stack/backend.hpp"
#include "jrt/execution/cpu.hpp"

/// The CPU backend. Including this header brings in Eigen/Core (for its SIMD packets); nothing else of the library does.
namespace jrt {

/// Bytes of the vectors that the CPU backend computes with, which follow from the compiler's flags: 16 on x86-64 where they
/// say nothing (SSE2), 32 with AVX, 64 with AVX-512. An engine can assert what it was to be compiled for.
inline constexpr int cpu_vector_bytes = detail::cpu::lanes<float> * static_cast<int>(sizeof(float));

}  // namespace jrt
