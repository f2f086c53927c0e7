// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/cpu/backend.hpp"
#include "jrt/detail/cpu/convolution_backend.hpp"
#include "jrt/detail/cpu/execution.hpp"
#include "jrt/detail/cpu/window_backend.hpp"
#include "jrt/detail/cpu/windowed_backend.hpp"
#include "jrt/detail/stack_backend.hpp"

/// The CPU backend. Including this header brings in Eigen/Core (for its SIMD packets); nothing else of the library does.
