// SPDX-License-Identifier: Apache-2.0
// Wider values in bfloat16: the 1.3B model's dv = 112, and 96 and 128.
#include "cuda/linear/prefill_bench.cuh"

namespace jrt::bench {
namespace {

const bool registered = [] {
  const std::vector<PrefillCase> cases{{16, 8192}, {16, 32768}, {1, 32768}};
  const std::vector<PrefillCase> packed_and_short{{.batch = 16, .tokens = 8192, .layout = Layout::variable_length},
                                                  {1, 2048}};
  add_prefill<BasedLinearAttention<BFloat16, 16, 112>>("causal/bfloat16/dv112", cases);
  add_prefill<BasedLinearAttention<BFloat16, 16, 112>>("causal/bfloat16/dv112", packed_and_short);
  add_prefill<PrefixLinearAttention<BFloat16, 16, 112>>("prefix/bfloat16/dv112", cases);
  add_prefill<PrefixLinearAttention<BFloat16, 16, 112>>("prefix/bfloat16/dv112", packed_and_short);
  add_prefill<PrefixLinearAttention<BFloat16, 16, 96>>("prefix/bfloat16/dv96", {{16, 8192}});
  add_prefill<PrefixLinearAttention<BFloat16, 16, 128>>("prefix/bfloat16/dv128", cases);
  return true;
}();

}  // namespace
}  // namespace jrt::bench
