// SPDX-License-Identifier: Apache-2.0
// Linear attention over several GPUs, forward and backward, against the call on one.
#include "distributed/nccl/ranks.cuh"

#include <cstdio>
#include <string>
#include <type_traits>

namespace jrt::test {
namespace {

/// With segments of the whole sequence, and with those of a device.
struct Linear : PrefixLinearAttention<float, 16, 32> {
  using Split = LengthSplit<512>;
};
using LinearOfDevice = PrefixLinearAttention<float, 16, 32>;
/// For which Hopper has kernels of its own.
struct Wide : PrefixLinearAttention<BFloat16, 16, 64> {
  using Split = LengthSplit<512>;
};
using WideOfDevice = PrefixLinearAttention<BFloat16, 16, 64>;

/// Runs the calls of one device.
struct OneDevice : Alone {};

template <class E>
struct Inputs {
  static constexpr std::int64_t value_dim = std::is_same_v<E, float> ? 32 : 64;
  std::int64_t tokens = 4096;
  std::int64_t prefix = 2048;
  std::vector<E> query = random_tensor<E>({1, tokens, heads, 16}, 1).values;
  std::vector<E> key = random_tensor<E>({1, tokens, heads, 16}, 2).values;
  std::vector<E> value = random_tensor<E>({1, tokens, heads, value_dim}, 3).values;
  std::vector<E> key_encoder = random_tensor<E>({1, prefix, heads, 16}, 4).values;
  std::vector<E> value_encoder = random_tensor<E>({1, prefix, heads, value_dim}, 5).values;
  std::vector<E> output_gradient = random_tensor<E>({1, tokens, heads, value_dim}, 6).values;
};

/// A rank's linear attention, forward and backward.
template <class Config, class C>
RankResults run_linear(const Inputs<typename Config::Element>& in, const ContextLayout& layout, C& communicator,
                       const Cuda& on, const Way& way) {
  using Element = typename Config::Element;
  constexpr std::int64_t value_dim = Config::value_dim;
  const int rank = communicator.rank();
  const std::int64_t first = layout.first_token(rank, 0);
  const std::int64_t count = layout.piece(rank, 0);
  const std::int64_t first_encoder = layout.first_encoder_token(rank, 0);
  const std::int64_t encoder = layout.encoder_piece(rank, 0);
  const auto query = rows(in.query, 16, first, count);
  const auto key = rows(in.key, 16, first, count);
  const auto value = rows(in.value, value_dim, first, count);
  const auto key_encoder = rows(in.key_encoder, 16, first_encoder, encoder);
  const auto value_encoder = rows(in.value_encoder, value_dim, first_encoder, encoder);
  const auto output_gradient = rows(in.output_gradient, value_dim, first, count);
  DeviceCopy<Element> output(static_cast<std::size_t>(count * heads * value_dim));
  DeviceCopy<float> denominators(static_cast<std::size_t>(count * heads));
  DeviceCopy<Element> key_gradient(static_cast<std::size_t>(count * heads * 16));

  ContextPlan<Config> plan;
  JRT_REQUIRE_OK(ContextPlan<Config>::make(layout, rank, on, plan, heads));
  DeviceCopy<std::byte> indices(plan.index_bytes());
  JRT_REQUIRE_OK(plan.place(indices.data(), on));
  ContextPrefillArgs<Config> forward;
  forward.plan = &plan;
  forward.local.query = view(query.data(), count, 16);
  forward.local.key = view(key.data(), count, 16);
  forward.local.value = view(value.data(), count, value_dim);
  forward.local.key_encoder = view(key_encoder.data(), encoder, 16);
  forward.local.value_encoder = view(value_encoder.data(), encoder, value_dim);
  forward.local.output = view(output.data(), count, value_dim);
  forward.local.denominators = view(denominators.data(), count, 1);
  constexpr bool plain = std::is_same_v<C, OneDevice>;
  // Memory that nobody has written holds no numbers.
  const auto unwritten = [](std::size_t bytes) {
    return DeviceCopy<std::byte>(std::vector<std::byte>(bytes, std::byte{0xff}));
  };
  const std::size_t bytes = plain ? prefill_workspace_bytes(forward.local, on) : prefill_workspace_bytes(forward, on);
  const auto workspace = unwritten(bytes);
  enqueue(
      communicator,
      [&] {
        if constexpr (plain) {
          return prefill(forward.local, {workspace.data(), bytes}, on);
        } else {
          return prefill(forward, communicator, {workspace.data(), bytes}, on);
        }
      },
      on, way);
  ContextBackwardArgs<Config> gradients;
  gradients.plan = &plan;
  gradients.local.query = forward.local.query;
  gradients.local.key = forward.local.key;
  gradients.local.value = forward.local.value;
  gradients.local.key_encoder = forward.local.key_encoder;
  gradients.local.value_encoder = forward.local.value_encoder;
  gradients.local.output = forward.local.output;
  gradients.local.denominators = forward.local.denominators;
  gradients.local.output_gradient = view(output_gradient.data(), count, value_dim);
  gradients.local.key_gradient = view(key_gradient.data(), count, 16);
  const std::size_t more_bytes =
      plain ? backward_workspace_bytes(gradients.local, on) : backward_workspace_bytes(gradients, on);
  const auto more = unwritten(more_bytes);
  enqueue(
      communicator,
      [&] {
        if constexpr (plain) {
          return backward(gradients.local, {more.data(), more_bytes}, on);
        } else {
          return backward(gradients, communicator, {more.data(), more_bytes}, on);
        }
      },
      on, way);
  return {as_floats(output.values()), as_floats(key_gradient.values())};
}

/// Each operation, and how far it may be from the call on one GPU: 0 for the same bits.
struct Operation {
  const char* name;
  double output_tolerance;
  double gradient_tolerance;
};
constexpr Operation operations[] = {{"float, fixed segments", 0, 0},
                                    {"float, the device's segments", 2e-6, 5e-6},
                                    {"bfloat16, fixed segments", 0, 0},
                                    {"bfloat16, the device's segments", 8e-3, 8e-3}};

const Inputs<float>& float_inputs() {
  static const Inputs<float> inputs;
  return inputs;
}
const Inputs<BFloat16>& wide_inputs() {
  static const Inputs<BFloat16> inputs;
  return inputs;
}

template <class C>
std::vector<RankResults> run_rank(const ContextLayout& layout, C& communicator, const Cuda& on, const Way& way) {
  return {run_linear<Linear>(float_inputs(), layout, communicator, on, way),
          run_linear<LinearOfDevice>(float_inputs(), layout, communicator, on, way),
          run_linear<Wide>(wide_inputs(), layout, communicator, on, way),
          run_linear<WideOfDevice>(wide_inputs(), layout, communicator, on, way)};
}

TEST_CASE("one rank agrees with the calls of one device") {
  if (devices() < 1) {
    return;
  }
  const std::int64_t whole[] = {float_inputs().tokens};
  const std::int64_t whole_encoder[] = {float_inputs().prefix};
  const ContextLayout layout{1, 1, whole, whole_encoder};
  Alone alone;
  OneDevice one;
  const auto expected = run_rank(layout, one, Cuda{}, Way{});
  for (const bool captured : {false, true}) {
    CAPTURE(captured);
    cudaStream_t stream = nullptr;
    REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    const auto actual = run_rank(layout, alone, Cuda{stream}, Way{.captured = captured});
    REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(std::string(operations[i].name));
      const bool wide = i >= 2;
      CHECK(relative_error(actual[i].output, expected[i].output) <= (wide ? 8e-3 : 2e-6));
      CHECK(relative_error(actual[i].key_gradient, expected[i].key_gradient) <= (wide ? 2e-2 : 5e-6));
    }
  }
}

TEST_CASE("linear attention on several GPUs agrees with one") {
  const Inputs<float>& inputs = float_inputs();
  const std::int64_t whole[] = {inputs.tokens};
  const std::int64_t whole_encoder[] = {inputs.prefix};
  Alone alone;
  if (devices() < 2) {
    std::printf("skipped: %d CUDA device, but this test needs 2\n", devices());
    return;
  }
  const auto expected = run_rank(ContextLayout{1, 1, whole, whole_encoder}, alone, Cuda{}, Way{});
  const std::int64_t two[] = {2560, 1536};
  const std::int64_t two_encoder[] = {1024, 1024};
  // The second rank has encoder tokens only.
  const std::int64_t two_uneven[] = {4096, 0};
  const std::int64_t four[] = {512, 1536, 0, 2048};
  const std::int64_t four_encoder[] = {512, 512, 1024, 0};
  const std::int64_t four_even[] = {1024, 1024, 1024, 1024};
  const std::int64_t four_even_encoder[] = {512, 512, 512, 512};
  const ContextLayout layouts[] = {{2, 1, two, two_encoder},
                                   {2, 1, two_uneven, two_encoder},
                                   {4, 1, four_even, four_even_encoder},
                                   {4, 1, four, four_encoder}};
  for (const ContextLayout& layout : layouts) {
    const int ranks = layout.ranks;
    if (devices() < ranks) {
      continue;
    }
    const std::int64_t tokens_of_second = layout.piece(1, 0);
    CAPTURE(tokens_of_second);
    std::vector<RankResults> first;
    for (const bool beside : {false, true}) {
      for (const bool captured : {false, true}) {
        CAPTURE(ranks);
        CAPTURE(beside);
        CAPTURE(captured);
        const auto actual =
            run_group(ranks, beside, captured, [&](NcclCommunicator& communicator, const Cuda& on, const Way& way) {
              return run_rank(layout, communicator, on, way);
            });
        first = first.empty() ? actual : first;
        for (std::size_t i = 0; i < expected.size(); ++i) {
          CAPTURE(std::string(operations[i].name));
          CHECK(relative_error(actual[i].output, expected[i].output) <= operations[i].output_tolerance);
          CHECK(relative_error(actual[i].key_gradient, expected[i].key_gradient) <= operations[i].gradient_tolerance);
          CHECK(actual[i].output == first[i].output);  // from call to call, whatever the stream
          CHECK(actual[i].key_gradient == first[i].key_gradient);
        }
      }
    }
  }
}

}  // namespace
}  // namespace jrt::test
