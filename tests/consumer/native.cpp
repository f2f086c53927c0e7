// SPDX-License-Identifier: Apache-2.0
#include <jrt/cpu.hpp>

static_assert(jrt::cpu_vector_bytes == EXPECTED_VECTOR_BYTES);
