// SPDX-License-Identifier: Apache-2.0
// expect: SoftmaxHalves<HeadDim>: HeadDim must be at least 1
#include <jrt/jrt.hpp>

jrt::SoftmaxHalves<0> map;
