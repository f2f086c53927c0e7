// SPDX-License-Identifier: Apache-2.0
// expect: list at least one configuration
#include <jrt/dispatch.hpp>

int count = jrt::Operators<>::count;
