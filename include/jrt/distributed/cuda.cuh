// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Context-parallel calls on the CUDA backend, for any Communicator whose memory is the device's; nccl.cuh has NCCL's.
#include "jrt/cuda.cuh"
#include "jrt/detail/cuda/distributed/backend.cuh"
#include "jrt/distributed/gated_convolution.hpp"
#include "jrt/distributed/hybrid_attention.hpp"
#include "jrt/distributed/linear_attention.hpp"
#include "jrt/distributed/stack.hpp"
#include "jrt/distributed/window_attention.hpp"
