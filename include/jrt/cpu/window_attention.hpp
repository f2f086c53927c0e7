// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/cpu/window/backend.hpp"
#include "jrt/execution/cpu.hpp"
#include "jrt/mixer/window_attention.hpp"

/// Window attention on the CPU, without the other mixers; includes Eigen/Core. Operations on whole states are included.
