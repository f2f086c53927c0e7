// SPDX-License-Identifier: Apache-2.0
// Large outputs go past the caches: they are what smaller ones would be.
#include <jrt/detail/cpu/core/stores.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <jrt/cpu/linear_attention.hpp>
#include <jrt/mixer/linear_attention.hpp>
#include <jrt/prefill.hpp>
#include <jrt/thread_pool.hpp>
#include <memory>
#include <new>
#include <random>
#include <vector>

namespace jrt::test {
namespace {

template <class E>
std::vector<E> random_numbers(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<E> numbers;
  numbers.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    numbers.push_back(convert<E>(uniform(generator)));
  }
  return numbers;
}

struct Free {
  void operator()(void* memory) const { ::operator delete (memory, std::align_val_t{64}); }
};

TEST_CASE("rows of packets") {
  alignas(64) static float numbers[4096];
  const std::int64_t packet = sizeof(detail::cpu::Packet<float>) / sizeof(float);
  const TensorView<float> view = view_bthd(numbers, {1, 4, 2, 4 * packet});
  CHECK(detail::cpu::has_rows_of_packets<float>(view) == detail::cpu::stores_past_caches);
  CHECK_FALSE(detail::cpu::passes_caches(view));
  static BFloat16 narrow[4096];
  CHECK_FALSE(detail::cpu::has_rows_of_packets<float>(view_bthd(narrow, {1, 4, 2, 4 * packet})));
  if (packet > 1) {
    TensorView<float> other = view;
    ++other.data;
    CHECK_FALSE(detail::cpu::has_rows_of_packets<float>(other));
    other = view;
    ++other.token_stride;
    CHECK_FALSE(detail::cpu::has_rows_of_packets<float>(other));
    other = view;
    ++other.head_stride;
    CHECK_FALSE(detail::cpu::has_rows_of_packets<float>(other));
    other = view;
    --other.dim;
    CHECK_FALSE(detail::cpu::has_rows_of_packets<float>(other));
  }
}

TEST_CASE_TEMPLATE("outputs past the caches are the same", E, float, double) {
  using Config = BasedLinearAttention<E, 16, 64>;
  constexpr std::int64_t heads = 8;
  constexpr std::int64_t dv = 64;
  const std::int64_t tokens = (std::int64_t{16} << 20) / static_cast<std::int64_t>(heads * dv * sizeof(E)) + 37;
  const auto query = random_numbers<E>(tokens * heads * 16, 1);
  const auto key = random_numbers<E>(tokens * heads * 16, 2);
  const auto value = random_numbers<E>(tokens * heads * dv, 3);
  // The same rows side by side, in lines, and with something between tokens.
  const std::int64_t apart = heads * dv + 3;
  const auto bytes = static_cast<std::size_t>(tokens * apart) * sizeof(E);
  const std::unique_ptr<void, Free> memory(::operator new (bytes, std::align_val_t{64}));
  const std::unique_ptr<void, Free> other(::operator new (bytes, std::align_val_t{64}));
  PrefillArgs<Config> args;
  args.query = view_bthd(query.data(), {1, tokens, heads, 16});
  args.key = view_bthd(key.data(), {1, tokens, heads, 16});
  args.value = view_bthd(value.data(), {1, tokens, heads, dv});
  args.output = view_bthd(static_cast<E*>(memory.get()), {1, tokens, heads, dv});
  REQUIRE(detail::cpu::passes_caches(args.output));
  CHECK(detail::cpu::has_rows_of_packets<E>(args.output) == detail::cpu::stores_past_caches);
  const TensorView<E> past_caches = args.output;
  ThreadPool threads(2);
  const Cpu on{threads};
  std::vector<std::byte> workspace(prefill_workspace_bytes(args, on));
  REQUIRE(prefill(args, {workspace.data(), workspace.size()}, on));
  args.output = {static_cast<E*>(other.get()), 1, tokens, heads, dv, tokens * apart, apart, dv};
  CHECK_FALSE(detail::cpu::has_rows_of_packets<E>(args.output));
  REQUIRE(prefill(args, {workspace.data(), workspace.size()}, on));
  bool same = true;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t c = 0; c < dv; ++c) {
        same = same && past_caches.row(0, t, h)[c] == args.output.row(0, t, h)[c];
      }
    }
  }
  CHECK(same);
}

}  // namespace
}  // namespace jrt::test
