// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/cuda/linear/backend.cuh"
#include "jrt/execution/cuda.cuh"
#include "jrt/mixer/linear_attention.hpp"

/// Linear attention on GPUs from sm_80 on, without the other mixers: a translation unit that uses one mixer compiles only
/// its kernels. Operations on whole states are included.
