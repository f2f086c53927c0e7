// SPDX-License-Identifier: Apache-2.0
// The published operators at d = 16, dv = 64 in bfloat16: all shapes, layouts and ways to call.
#include "cuda/linear/prefill_bench.cuh"

namespace jrt::bench {
namespace {

const bool registered = [] {
  const std::vector<PrefillCase> table{{16, 2048}, {16, 8192},  {16, 16384},  {16, 32768}, {1, 2048},
                                       {1, 32768}, {1, 131072}, {1, 1048576}, {8, 2048}};
  const std::vector<PrefillCase> replayed{{.batch = 1, .tokens = 2048, .graph = true},
                                          {.batch = 8, .tokens = 2048, .graph = true},
                                          {.batch = 1, .tokens = 32768, .graph = true}};
  using Causal = BasedLinearAttention<BFloat16, 16, 64>;
  add_prefill<Causal>("causal/bfloat16/dv64", table);
  add_prefill<Causal>("causal/bfloat16/dv64", replayed);
  // What JRT-Prompt's mixer reads of 16 prompts of 32768 tokens: each of them twice.
  add_prefill<Causal>("causal/bfloat16/dv64", {{16, 65536}});
  add_prefill<Causal>("causal/bfloat16/dv64", {{.batch = 16, .tokens = 8192, .layout = Layout::variable_length}});

  using Prefix = PrefixLinearAttention<BFloat16, 16, 64>;
  add_prefill<Prefix>("prefix/bfloat16/dv64", table);
  add_prefill<Prefix>("prefix/bfloat16/dv64", replayed);
  // To be compared with 16 contiguous sequences of 8192 tokens.
  add_prefill<Prefix>("prefix/bfloat16/dv64",
                      {{16, 8191},
                       {.batch = 16, .tokens = 8192, .layout = Layout::token_major},
                       {.batch = 1, .tokens = 32768, .layout = Layout::token_major},
                       {.batch = 16, .tokens = 8192, .layout = Layout::packed_qkv},
                       {.batch = 16, .tokens = 8192, .layout = Layout::variable_length},
                       {.batch = 16, .tokens = 8192, .layout = Layout::variable_length, .spread = 5},
                       {.batch = 64, .tokens = 2048},
                       {.batch = 64, .tokens = 2048, .layout = Layout::variable_length},
                       {.batch = 16, .tokens = 8192, .key_heads = 4},
                       {.batch = 16, .tokens = 8192, .from_state = true}});
  return true;
}();

}  // namespace
}  // namespace jrt::bench
