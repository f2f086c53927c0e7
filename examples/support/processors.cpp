// SPDX-License-Identifier: Apache-2.0
#include "support/processors.hpp"

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

namespace support {

namespace {

/// Those that this thread may run on. std::thread::hardware_concurrency() is of the machine, with some versions of glibc.
int allowed_processors() {
#if defined(__linux__)
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    return std::max(1, CPU_COUNT(&allowed));
  }
#endif
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

/// Processors' worth of time in each period; 0: no limit.
double quota(const std::filesystem::path& control_groups) {
  double time = 0;
  double period = 0;
  if (std::ifstream both(control_groups / "cpu.max"); both >> time >> period) {  // "max 100000" is no number: no limit
    return time > 0 && period > 0 ? time / period : 0;
  }
  std::ifstream times(control_groups / "cpu/cpu.cfs_quota_us");
  std::ifstream periods(control_groups / "cpu/cpu.cfs_period_us");
  return times >> time && periods >> period && time > 0 && period > 0 ? time / period : 0;
}

}  // namespace

int available_processors(const std::filesystem::path& control_groups) {
  const int processors = allowed_processors();
  const double limit = quota(control_groups);
  return limit > 0 && limit < processors ? static_cast<int>(std::ceil(limit)) : processors;
}

}  // namespace support
