// SPDX-License-Identifier: Apache-2.0
// expect: CosFormer<HeadDim>: HeadDim must be at least 1
#include <jrt/jrt.hpp>

jrt::CosFormer<0> map;
