// SPDX-License-Identifier: Apache-2.0
// expect: HeadDim is the feature input dimension d and must be at least 1
#include <jrt/jrt.hpp>

jrt::Square<0> map;
