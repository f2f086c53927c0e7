// SPDX-License-Identifier: Apache-2.0
#include "support/processors.hpp"

#include <doctest/doctest.h>

#if defined(__linux__)
#include <sched.h>
#endif

#include <filesystem>
#include <fstream>
#include <string>

namespace support::test {
namespace {

/// A folder of control groups with these files, for as long as it is there.
class ControlGroups {
 public:
  explicit ControlGroups(const std::string& name)
      : folder_(std::filesystem::temp_directory_path() / ("jrt_processors_" + name)) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_ / "cpu");
  }
  ControlGroups(const ControlGroups&) = delete;
  ControlGroups& operator=(const ControlGroups&) = delete;
  ~ControlGroups() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  void write(const std::string& file, const std::string& text) const { std::ofstream(folder_ / file) << text << '\n'; }
  [[nodiscard]] int processors() const { return available_processors(folder_); }

 private:
  std::filesystem::path folder_;
};

const int all = available_processors("no folder");

TEST_CASE("processors: a quota of version 2 of control groups, rounded up") {
  const ControlGroups groups("version_2");
  CHECK(groups.processors() == all);
  groups.write("cpu.max", "100000 100000");
  CHECK(groups.processors() == 1);
  groups.write("cpu.max", "5000 100000");
  CHECK(groups.processors() == 1);
  groups.write("cpu.max", "150000 100000");
  CHECK(groups.processors() == (all < 2 ? all : 2));
  groups.write("cpu.max", "100000000000 100000");
  CHECK(groups.processors() == all);
}

TEST_CASE("processors: a quota of version 1") {
  const ControlGroups groups("version_1");
  groups.write("cpu/cpu.cfs_quota_us", "40000");
  groups.write("cpu/cpu.cfs_period_us", "50000");
  CHECK(groups.processors() == 1);
}

TEST_CASE("processors: no quota, or files that say nothing, limit nothing") {
  const ControlGroups groups("none");
  for (const char* const text : {"max 100000", "", "0 100000", "100000", "100000 0", "-1 100000"}) {
    CAPTURE(text);
    groups.write("cpu.max", text);
    CHECK(groups.processors() == all);
  }
  groups.write("cpu/cpu.cfs_quota_us", "-1");
  groups.write("cpu/cpu.cfs_period_us", "100000");
  CHECK(groups.processors() == all);
}

#if defined(__linux__)
TEST_CASE("processors: those that a process may not run on do not count") {
  cpu_set_t before;
  REQUIRE(sched_getaffinity(0, sizeof(before), &before) == 0);
  REQUIRE(all == CPU_COUNT(&before));
  int first = 0;
  while (!CPU_ISSET(first, &before)) {
    ++first;
  }
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  REQUIRE(sched_setaffinity(0, sizeof(one), &one) == 0);
  const int allowed = available_processors("no folder");
  REQUIRE(sched_setaffinity(0, sizeof(before), &before) == 0);
  CHECK(allowed == 1);
}
#endif

}  // namespace
}  // namespace support::test
