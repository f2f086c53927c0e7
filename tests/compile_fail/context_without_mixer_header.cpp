// SPDX-License-Identifier: Apache-2.0
// expect: a context-parallel call needs the mixer's header in jrt/distributed/
#include <jrt/distributed/context_parallel.hpp>
#include <jrt/execution/cpu.hpp>

struct Config {};
std::size_t bytes = jrt::detail::ContextMixer<Config, jrt::Cpu<>>::none;
