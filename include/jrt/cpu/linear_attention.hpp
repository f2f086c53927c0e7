// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/cpu/linear/backend.hpp"
#include "jrt/execution/cpu.hpp"
#include "jrt/mixer/linear_attention.hpp"

/// Linear attention on the CPU, without the other mixers; includes Eigen/Core. Operations on whole states are included.
