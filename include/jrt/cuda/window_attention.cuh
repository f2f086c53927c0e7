// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/cuda/window/backend.cuh"
#include "jrt/execution/cuda.cuh"
#include "jrt/mixer/window_attention.hpp"

/// Window attention on GPUs from sm_80 on, without the other mixers: a translation unit that uses one mixer compiles only
/// its kernels. Operations on whole states are included.
