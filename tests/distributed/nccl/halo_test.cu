// SPDX-License-Identifier: Apache-2.0
// Windows and convolutions over several GPUs, against the call on one.
#include "distributed/nccl/ranks.cuh"

#include <cstdio>

namespace jrt::test {
namespace {

using Window = SlidingWindowAttention<float, 16, 31>;
using Convolution = GatedConvolution<float, 3>;

struct Inputs {
  std::int64_t tokens = 4096;
  std::vector<float> query = random_tensor<float>({1, tokens, heads, 16}, 1).values;
  std::vector<float> key = random_tensor<float>({1, tokens, heads, 16}, 2).values;
};

/// A rank's window or convolution, whose values or gates are the queries.
template <class Config, class C>
RankResults run_halo(const Inputs& in, const ContextLayout& layout, C& communicator, const Cuda& on, const Way& way) {
  const int rank = communicator.rank();
  const std::int64_t first = layout.first_token(rank, 0);
  const std::int64_t count = layout.piece(rank, 0);
  const auto query = rows(in.query, 16, first, count);
  const auto key = rows(in.key, 16, first, count);
  DeviceCopy<float> output(static_cast<std::size_t>(count * heads * 16));
  const DeviceCopy<float> weight(random_tensor<float>({1, 1, 1, heads * 16 * 3}, 9).values);
  ContextPlan<Config> plan;
  JRT_REQUIRE_OK(ContextPlan<Config>::make(layout, rank, on, plan));
  DeviceCopy<std::byte> indices(plan.index_bytes());
  JRT_REQUIRE_OK(plan.place(indices.data(), on));
  ContextPrefillArgs<Config> args;
  args.plan = &plan;
  if constexpr (WindowConfig<Config>) {
    args.local.query = view(query.data(), count, 16);
    args.local.key = view(key.data(), count, 16);
    args.local.value = view(query.data(), count, 16);
    args.local.output = view(output.data(), count, 16);
  } else {
    args.local.input = view_bthd(key.data(), {.tokens = count, .dim = heads * 16});
    args.local.gate = view_bthd(query.data(), {.tokens = count, .dim = heads * 16});
    args.local.output = view_bthd(output.data(), {.tokens = count, .dim = heads * 16});
    args.local.weight = weight.data();
  }
  const std::size_t bytes = prefill_workspace_bytes(args, on);
  DeviceCopy<std::byte> workspace(bytes);
  enqueue(
      communicator,
      [&] {
        return prefill(args, communicator, {workspace.data(), bytes}, on);
      },
      on, way);
  return {output.values(), {}};
}

/// A rank's window of 16-bit numbers, for which Hopper has a kernel of its own, and the cache that it leaves.
using WideWindow = SlidingWindowAttention<BFloat16, 64, 128>;
struct WideInputs {
  std::int64_t tokens = 3072;
  std::vector<BFloat16> query = random_tensor<BFloat16>({1, tokens, heads, 64}, 11).values;
  std::vector<BFloat16> key = random_tensor<BFloat16>({1, tokens, heads, 64}, 12).values;
  std::vector<BFloat16> value = random_tensor<BFloat16>({1, tokens, heads, 64}, 13).values;
};
struct WideResults {
  std::vector<BFloat16> output;
  std::vector<BFloat16> state;
};

template <class C>
WideResults run_wide_window(const WideInputs& in, const ContextLayout& layout, C& communicator, const Cuda& on,
                            bool with_state, const Way& way) {
  using Format = StateFormatOf<WideWindow>;
  const int rank = communicator.rank();
  const std::int64_t count = layout.piece(rank, 0);
  const auto piece = [&](const std::vector<BFloat16>& all) {
    const auto* const begin = all.data() + layout.first_token(rank, 0) * heads * 64;
    return DeviceCopy<BFloat16>(std::vector<BFloat16>(begin, begin + count * heads * 64));
  };
  const auto query = piece(in.query);
  const auto key = piece(in.key);
  const auto value = piece(in.value);
  DeviceCopy<BFloat16> output(static_cast<std::size_t>(count * heads * 64));
  DeviceCopy<BFloat16> state(static_cast<std::size_t>(heads * Format::head_elements));
  ContextPlan<WideWindow> plan;
  JRT_REQUIRE_OK(ContextPlan<WideWindow>::make(layout, rank, on, plan));
  DeviceCopy<std::byte> indices(plan.index_bytes());
  JRT_REQUIRE_OK(plan.place(indices.data(), on));
  ContextPrefillArgs<WideWindow> args;
  args.plan = &plan;
  args.local.query = view(query.data(), count, 64);
  args.local.key = view(key.data(), count, 64);
  args.local.value = view(value.data(), count, 64);
  args.local.output = view(output.data(), count, 64);
  if (with_state) {
    args.local.final_state = {view_pool<Format>(state.data(), 1, heads)};
  }
  const std::size_t bytes = prefill_workspace_bytes(args, on);
  DeviceCopy<std::byte> workspace(bytes);
  enqueue(
      communicator,
      [&] {
        return prefill(args, communicator, {workspace.data(), bytes}, on);
      },
      on, way);
  return {output.values(), state.values()};
}

TEST_CASE("windows and convolutions on several GPUs agree with one") {
  const Inputs inputs;
  const auto run_rank = [&](const ContextLayout& layout, auto& communicator, const Cuda& on, const Way& way) {
    return std::vector<RankResults>{run_halo<Window>(inputs, layout, communicator, on, way),
                                    run_halo<Convolution>(inputs, layout, communicator, on, way)};
  };
  const std::int64_t whole[] = {inputs.tokens};
  Alone alone;
  if (devices() < 2) {
    std::printf("skipped: %d CUDA device, but this test needs 2\n", devices());
    return;
  }
  const auto expected = run_rank(ContextLayout{1, 1, whole}, alone, Cuda{}, Way{});
  const std::int64_t two[] = {2560, 1536};
  const std::int64_t two_uneven[] = {4094, 2};
  const std::int64_t four[] = {512, 1536, 0, 2048};
  const std::int64_t four_even[] = {1024, 1024, 1024, 1024};
  for (const ContextLayout& layout : {ContextLayout{2, 1, two}, ContextLayout{2, 1, two_uneven},
                                      ContextLayout{4, 1, four_even}, ContextLayout{4, 1, four}}) {
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
        CHECK(relative_error(actual[0].output, expected[0].output) <= 2e-6);
        CHECK(actual[1].output == expected[1].output);  // of a convolution, the same bits
        for (std::size_t i = 0; i < expected.size(); ++i) {
          CHECK(actual[i].output == first[i].output);  // from call to call, whatever the stream
        }
      }
    }
  }
}

TEST_CASE("windows of 16-bit numbers on several GPUs, with and without the cache that is left") {
  const WideInputs inputs;
  const std::int64_t whole[] = {inputs.tokens};
  const std::int64_t two[] = {1600, 1472};
  const std::int64_t four[] = {1000, 72, 1900, 100};  // two are shorter than the window
  for (const ContextLayout& layout : {ContextLayout{2, 1, two}, ContextLayout{4, 1, four}}) {
    const int ranks = layout.ranks;
    if (devices() < ranks) {
      continue;
    }
    CAPTURE(ranks);
    cudaSetDevice(0);
    Alone alone;
    for (const bool with_state : {true, false}) {
      CAPTURE(with_state);
      const WideResults expected = run_wide_window(inputs, {1, 1, whole}, alone, Cuda{}, with_state, Way{});
      std::vector<WideResults> actual(static_cast<std::size_t>(ranks));
      on_gpus(ranks, true, true, [&](NcclCommunicator& communicator, const Cuda& on, const Way& way) {
        actual[static_cast<std::size_t>(communicator.rank())] =
            run_wide_window(inputs, layout, communicator, on, with_state, way);
      });
      std::vector<BFloat16> output;
      for (const WideResults& rank : actual) {
        output.insert(output.end(), rank.output.begin(), rank.output.end());
      }
      CHECK(relative_error(as_floats(output), as_floats(expected.output)) <= 4e-3);
      CHECK(as_floats(actual.back().state) == as_floats(expected.state));
    }
  }
}

}  // namespace
}  // namespace jrt::test
