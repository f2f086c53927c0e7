// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Context-parallel calls on the CPU backend: include this and a mixer's header in distributed/.
#include "jrt/cpu.hpp"
#include "jrt/detail/cpu/distributed/backend.hpp"
#include "jrt/distributed/gated_convolution.hpp"
#include "jrt/distributed/hybrid_attention.hpp"
#include "jrt/distributed/linear_attention.hpp"
#include "jrt/distributed/stack.hpp"
#include "jrt/distributed/thread_communicator.hpp"
#include "jrt/distributed/window_attention.hpp"
