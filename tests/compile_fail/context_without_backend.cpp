// SPDX-License-Identifier: Apache-2.0
// expect: there is no context-parallel backend for this execution argument
#include <jrt/distributed/linear_attention.hpp>
#include <jrt/execution/cpu.hpp>

using Config = jrt::BasedLinearAttention<float, 16, 64>;
jrt::ContextPlan<Config> plan;
jrt::Status status = jrt::ContextPlan<Config>::make(jrt::ContextLayout{}, 0, jrt::Cpu{}, plan);
