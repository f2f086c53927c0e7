// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>

namespace support {

/// How many threads this process can have at work at the same time, at least 1: the processors that it may run on, and no
/// more than a container's quota of processor time, rounded up. The quota is read below `control_groups`, where Linux has
/// that of this process's own container: `cpu.max` (control groups, version 2), or `cpu/cpu.cfs_quota_us` and
/// `cpu/cpu.cfs_period_us` (version 1). Files that are not there, or not of this form, limit nothing.
[[nodiscard]] int available_processors(const std::filesystem::path& control_groups = "/sys/fs/cgroup");

}  // namespace support
