// SPDX-License-Identifier: Apache-2.0
// One mixer's backend without the others: what its header promises.
#include <doctest/doctest.h>

#include <cstdint>
#include <jrt/cpu/window_attention.hpp>
#include <jrt/kernels.hpp>
#include <jrt/state_operations.hpp>
#include <type_traits>
#include <vector>

namespace jrt::test {
namespace {

using Window = SlidingWindowAttention<float, 8, 4>;

TEST_CASE("window attention alone: prefill with a workspace of its own, a step, and an operation on states") {
  const std::int64_t tokens = 6;
  std::vector<float> numbers(static_cast<std::size_t>(tokens * 8));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = static_cast<float>(i % 7) - 3;
  }
  std::vector<float> whole(numbers.size());
  std::vector<float> step(8);
  const auto view = [&](auto* data, std::int64_t count) {
    return TensorView<std::remove_pointer_t<decltype(data)>>{data, 1, count, 1, 8, count * 8, 8, 8};
  };
  const float* const input = numbers.data();
  using Format = StateFormatOf<Window>;
  StatePool<Format> pool;
  REQUIRE(StatePool<Format>::allocate(1, 1, pool).ok());
  PrefillArgs<Window> args;
  args.query = args.key = args.value = view(input, tokens);
  args.output = view(whole.data(), tokens);
  REQUIRE(prefill(args, Cpu{}).ok());
  CHECK(kernels_of(args, Cpu{}) == KernelKinds{.cpu = true});
  args.value.tokens -= 1;
  CHECK_FALSE(kernels_of(args, Cpu{}).any());  // the call would be refused
  REQUIRE(clear_states<Format>({pool.view()}, 1, Cpu{}).ok());
  args.query = args.key = args.value = view(input, tokens - 1);
  std::vector<float> first(whole);
  args.output = view(first.data(), tokens - 1);
  args.initial_state = args.final_state = {pool.view()};
  REQUIRE(prefill(args, Cpu{}).ok());
  DecodeArgs<Window> one;
  one.query = one.key = one.value = view(input + (tokens - 1) * 8, 1);
  one.output = view(step.data(), 1);
  one.source = {pool.view()};
  REQUIRE(decode_step(one, Cpu{}).ok());
  for (std::size_t c = 0; c < 8; ++c) {
    CHECK(step[c] == doctest::Approx(whole[static_cast<std::size_t>(tokens - 1) * 8 + c]).epsilon(1e-5));
  }
}

}  // namespace
}  // namespace jrt::test
