// SPDX-License-Identifier: Apache-2.0
// Other element types, and float whose products are split.
#include "cuda/linear/prefill_bench.cuh"

namespace jrt::bench {
namespace {

struct SplitFloat : PrefixLinearAttention<float, 16, 64> {
  using Products = SplitProducts;
};

const bool registered = [] {
  add_prefill<PrefixLinearAttention<Half, 16, 64>>("prefix/half/dv64", {{16, 8192}, {16, 32768}, {1, 32768}});
  add_prefill<PrefixLinearAttention<float, 16, 64>>("prefix/float/dv64", {{16, 8192}, {1, 32768}});
  add_prefill<SplitFloat>("prefix/float_split/dv64", {{16, 8192}, {1, 32768}});
  return true;
}();

}  // namespace
}  // namespace jrt::bench
