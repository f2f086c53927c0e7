// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <jrt/execution/cuda.cuh>
#include <memory>

#include "jrt_lm/ranks.hpp"

namespace jrt_lm {

/// GPUs 0 … ranks − 1 of this host, connected by NCCL; the calling thread's device is the last one afterwards. Errors are
/// std::runtime_error; so is that there is none, where NCCL was not found when this was built.
std::unique_ptr<RankGroup> make_nccl_group(int ranks);
/// On the calling thread's device, which must be GPU `rank`. The group must outlive it.
std::unique_ptr<RankLink<jrt::Cuda>> make_nccl_link(RankGroup& group, int rank);
/// Waits until the work of `on` is done, or the group is aborted, which is an error: `abort` has to follow.
void await_nccl(RankLink<jrt::Cuda>& link, const jrt::Cuda& on);

}  // namespace jrt_lm
