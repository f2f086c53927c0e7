// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/cuda/convolution/backend.cuh"
#include "jrt/detail/cuda/hybrid/backend.cuh"
#include "jrt/detail/cuda/linear/backend.cuh"
#include "jrt/detail/cuda/window/backend.cuh"
#include "jrt/detail/shared/stack/backend.hpp"
#include "jrt/execution/cuda.cuh"

/// The CUDA backend, for GPUs from sm_80 on; needs nvcc, and no Eigen. Pass `jrt::Cuda{stream}` to any operation.
