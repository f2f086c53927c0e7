// SPDX-License-Identifier: Apache-2.0
// expect: ContextBackwardArgs needs the configuration of a mixer, with its header in jrt/distributed/
#include <jrt/distributed/context_parallel.hpp>
#include <jrt/mixer/window_attention.hpp>

jrt::ContextBackwardArgs<jrt::SlidingWindowAttention<float, 16, 8>> args;
