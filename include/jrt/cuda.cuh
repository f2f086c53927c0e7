// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/cuda/gated_convolution.cuh"
#include "jrt/cuda/hybrid_attention.cuh"
#include "jrt/cuda/linear_attention.cuh"
#include "jrt/cuda/window_attention.cuh"
#include "jrt/detail/shared/stack/backend.hpp"
#include "jrt/execution/cuda.cuh"

/// The CUDA backend of all mixers (cuda/ has one header for each) and of stacks, for GPUs from sm_80 on;
/// needs nvcc, and no Eigen. Pass `jrt::Cuda{stream}` to any operation.
