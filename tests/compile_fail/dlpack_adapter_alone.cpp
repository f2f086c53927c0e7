// SPDX-License-Identifier: Apache-2.0
// expect: include your own dlpack/dlpack.h before it
#include <jrt/adapters/dlpack.hpp>
