// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdio>
#include <jrt/jrt.hpp>
#include <string_view>
#include <vector>

using Attention = jrt::PrefixLinearAttention<float, 8, 8>;

bool run_prefill(const jrt::PrefillArgs<Attention>& args);

#if defined(__x86_64__) && !defined(__AVX__)
static_assert(jrt::cpu_vector_bytes == 16);  // who says nothing gets SSE2
#endif

int main() {
  constexpr jrt::TensorShape shape{.tokens = 5, .dim = 8};
  std::vector<float> ones(5 * 8, 1.0F);
  std::vector<float> output(5 * 8);
  jrt::PrefillArgs<Attention> args{.query = jrt::view_bthd(ones.data(), shape), .key = jrt::view_bthd(ones.data(), shape)};
  args.value = args.key;
  args.output = jrt::view_bthd(output.data(), shape);
  bool good = run_prefill(args) && jrt::prefill(args, jrt::Cpu{}).ok() && std::abs(output.back() - 1.0F) < 1e-5F;
  args.key_encoder = args.key;
  const jrt::Status status = jrt::prefill(args, jrt::Cpu{});
  good = good &&
         status.message() == "prefill: argument 'value_encoder' is missing: it has tokens = 0, but key_encoder's is 5.";
  std::printf("jrt %d.%d.%d, vectors of %d bytes: %s\n%s\n", JRT_VERSION_MAJOR, JRT_VERSION_MINOR, JRT_VERSION_PATCH,
              jrt::cpu_vector_bytes, good ? "works" : "FAILED", status.c_str());
  return good ? 0 : 1;
}
