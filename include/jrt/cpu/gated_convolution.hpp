// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/cpu/convolution/backend.hpp"
#include "jrt/execution/cpu.hpp"
#include "jrt/mixer/gated_convolution.hpp"

/// The gated convolution on the CPU, without the other mixers; includes Eigen/Core. Operations on whole states are
/// included.
