// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/cuda/hybrid/backend.cuh"
#include "jrt/execution/cuda.cuh"
#include "jrt/mixer/hybrid_attention.hpp"

/// The hybrid of linear and window attention on GPUs from sm_80 on, without the other mixers: a translation unit that uses
/// one mixer compiles only its kernels. Operations on whole states are included.
