// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/language.hpp"

// Policies and index arithmetic run on both sides. With a CUDA compiler they are compiled for both; with a host compiler
// the annotation vanishes.
#if defined(__CUDACC__)
#define JRT_DETAIL_HD __host__ __device__
#else
#define JRT_DETAIL_HD
#endif
