// SPDX-License-Identifier: Apache-2.0
// Operators that differ from the published ones in one policy.
#include "cuda/linear/prefill_bench.cuh"

namespace jrt::bench {
namespace {

struct Full : PrefixLinearAttention<BFloat16, 16, 64> {
  using Mask = FullMask;
};
struct PrefixUnnormalised : PrefixLinearAttention<BFloat16, 16, 64> {
  using Normaliser = Unnormalised;
};

const bool registered = [] {
  add_prefill<Full>("full/bfloat16/dv64", {{16, 8192}});
  add_prefill<PrefixUnnormalised>("prefix_unnormalised/bfloat16/dv64", {{16, 32768}});
  return true;
}();

}  // namespace
}  // namespace jrt::bench
