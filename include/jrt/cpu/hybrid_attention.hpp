// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/cpu/hybrid/backend.hpp"
#include "jrt/execution/cpu.hpp"
#include "jrt/mixer/hybrid_attention.hpp"

/// The hybrid of linear and window attention on the CPU, without the other mixers; includes Eigen/Core. Operations on whole
/// states are included.
