// SPDX-License-Identifier: Apache-2.0
// expect: ContextPlan needs the configuration of a mixer, with its header
#include <jrt/distributed/linear_attention.hpp>

jrt::ContextPlan<int> plan;
