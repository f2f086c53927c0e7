// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Where a test runs. Test bodies are written once, for any backend: `Array` is memory that the backend can read,
/// `execution()` the argument that selects it. `Simple` and `Concurrent` are two ways of running on the backend that the
/// test program is compiled for; results must not depend on which.
#if defined(JRT_TEST_CUDA)
#include "support/cuda_backend.cuh"
#else
#include "support/cpu_backend.hpp"
#endif

#define JRT_TEST_BACKENDS jrt::test::Simple, jrt::test::Concurrent
