// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/cuda/backend.cuh"
#include "jrt/detail/cuda/convolution_backend.cuh"
#include "jrt/detail/cuda/execution.cuh"
#include "jrt/detail/cuda/window_backend.cuh"
#include "jrt/detail/cuda/windowed_backend.cuh"
#include "jrt/detail/stack_backend.hpp"

/// The CUDA backend, for GPUs from sm_80 on; needs nvcc, and no Eigen. Pass `jrt::Cuda{stream}` to any operation.
