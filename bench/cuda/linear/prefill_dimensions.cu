// SPDX-License-Identifier: Apache-2.0
// Smaller and larger d, and a smaller dv, in bfloat16.
#include "cuda/linear/prefill_bench.cuh"

namespace jrt::bench {
namespace {

const bool registered = [] {
  add_prefill<PrefixLinearAttention<BFloat16, 16, 32>>("prefix/bfloat16/dv32", {{16, 8192}});
  add_prefill<PrefixLinearAttention<BFloat16, 8, 64>>("prefix/bfloat16/d8/dv64", {{16, 8192}});
  add_prefill<PrefixLinearAttention<BFloat16, 32, 64>>("prefix/bfloat16/d32/dv64", {{16, 8192}, {1, 32768}});
  add_prefill<PrefixLinearAttention<BFloat16, 64, 64>>("prefix/bfloat16/d64/dv64", {{16, 8192}});
  return true;
}();

}  // namespace
}  // namespace jrt::bench
