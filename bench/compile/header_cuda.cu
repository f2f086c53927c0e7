// SPDX-License-Identifier: Apache-2.0
// The CUDA backend of all mixers, nothing instantiated.
#include <jrt/cuda.cuh>
