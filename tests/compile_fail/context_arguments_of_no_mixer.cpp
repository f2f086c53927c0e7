// SPDX-License-Identifier: Apache-2.0
// expect: ContextPrefillArgs needs the configuration of a mixer, with its header in jrt/distributed/
#include <jrt/distributed/context_parallel.hpp>
#include <jrt/mixer/window_attention.hpp>

jrt::ContextPrefillArgs<jrt::SlidingWindowAttention<float, 16, 8>> args;
