// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>

/// What this machine can do at most, measured in this binary, and how benchmarks report against it.
namespace bench {

/// Fused multiply-adds on registers alone, floating-point operations per second of `threads` threads together.
double fma_peak(int threads);

/// Eigen's float matrix product of order 1024 on one thread, operations per second.
double sgemm_rate();

/// Seconds to read and write `bytes` bytes once in place on one thread, with this many bytes going round.
double seconds_to_update(std::int64_t bytes);

/// Seconds of one iteration of earlier benchmarks, by name, for ratios between them.
std::map<std::string, double>& seconds_of();

}  // namespace bench
