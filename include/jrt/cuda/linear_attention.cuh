// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/cuda/linear/backend.cuh"
#include "jrt/execution/cuda.cuh"
#include "jrt/mixer/linear_attention.hpp"

/// Linear attention on GPUs from sm_80 on, without the other mixers: a translation unit that needs one compiles its kernels
/// alone. Operations on whole states are there, too.
