// SPDX-License-Identifier: Apache-2.0
// expect: include your own ggml.h before it
#include <jrt/adapters/ggml.hpp>
