// SPDX-License-Identifier: Apache-2.0
// What only CUDA's backward pass of window attention has: lengths that the host cannot see, graphs, offsets beyond 2^31.
#include <jrt/cuda.cuh>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <jrt/backward.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <vector>

#include "support/backend.hpp"
#include "support/window_backward_problem.hpp"

namespace jrt::test {
namespace {

using Config = Turned<BFloat16, 64, 128>;

TEST_CASE_TEMPLATE("the backward pass replays from a graph, with lengths as they are then", C, Config,
                   Turned<float, 16, 4>) {
  WindowProblem<C> problem({.batch = 2, .tokens = 150});
  problem.sequences.seq_lens = {150, 70};
  const auto output_gradient = random_output_gradient(problem);
  PlacedBackward<Concurrent, C> placed(problem, output_gradient, Layout::bthd);
  const Cuda on = Concurrent::execution();
  // Lengths in memory that changes between capture and replay.
  DeviceArray<std::int32_t> lengths(std::vector<std::int32_t>{1, 1});
  auto args = placed.args({});
  args.sequences.seq_lens = lengths.data();
  DeviceArray<std::byte> memory(std::vector<std::byte>(backward_workspace_bytes(args, on)));
  const Workspace workspace{memory.data(), backward_workspace_bytes(args, on)};
  require_cuda(cudaStreamBeginCapture(on.stream(), cudaStreamCaptureModeThreadLocal), "begin capture");
  const Status status = backward(args, workspace, on);
  cudaGraph_t graph = nullptr;
  require_cuda(cudaStreamEndCapture(on.stream(), &graph), "end capture");
  JRT_REQUIRE_OK(status);
  cudaGraphExec_t executable = nullptr;
  require_cuda(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  require_cuda(
      cudaMemcpy(lengths.data(), problem.sequences.seq_lens.data(), 2 * sizeof(std::int32_t), cudaMemcpyHostToDevice),
      "copy to the device");
  require_cuda(cudaGraphLaunch(executable, on.stream()), "replay");
  const auto replayed = placed.read({});
  CHECK(replayed == run_backward<Concurrent>(problem, output_gradient));
  require_cuda(cudaGraphExecDestroy(executable), "destroy");
  require_cuda(cudaGraphDestroy(graph), "destroy");
}

TEST_CASE("lengths beyond the views do not reach beyond the gradients") {
  WindowProblem<Config> problem({.batch = 2, .tokens = 70});
  const auto output_gradient = random_output_gradient(problem);
  PlacedBackward<Simple, Config> placed(problem, output_gradient, Layout::bthd);
  DeviceArray<std::int32_t> lengths(std::vector<std::int32_t>{1000000, -5});
  auto args = placed.args({});
  args.sequences.seq_lens = lengths.data();
  JRT_REQUIRE_OK(backward(args, Simple::execution()));
  const auto gradients = placed.read({});
  const auto expected = run_backward<Simple>(problem, output_gradient);
  CHECK(batch_slice(gradients.query, 0) == batch_slice(expected.query, 0));
  CHECK(batch_slice(gradients.key, 0) == batch_slice(expected.key, 0));
  CHECK(batch_slice(gradients.key, 1) == zero_tensor<BFloat16>({1, 70, 2, 64}));
}

/// Two heads, 2^31 elements apart; tensors lie one after the other.
TEST_CASE("offsets beyond 2^31 elements") {
  constexpr std::int64_t tokens = 130;
  constexpr std::int64_t apart = (std::int64_t{1} << 31) + 64;
  constexpr std::int64_t head_elements = tokens * 64;
  const WindowProblem<Config> problem({.batch = 1, .tokens = tokens, .heads = 2, .query_heads = 2});
  const auto output_gradient = random_output_gradient(problem);
  void* memory = nullptr;
  if (cudaMalloc(&memory, (apart + 8 * head_elements) * sizeof(BFloat16)) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    MESSAGE("skipped: the device has too little memory");
    return;
  }
  auto* const elements = static_cast<BFloat16*>(memory);
  const auto view_at = [&](std::int64_t i) {
    return TensorView<BFloat16>{elements + i * head_elements, 1, tokens, 2, 64, apart + head_elements, 64, apart};
  };
  const auto placed_at = [&](std::int64_t i, const Tensor<BFloat16>& tensor) {
    const TensorView<BFloat16> view = view_at(i);
    for (std::int64_t h = 0; h < 2; ++h) {
      std::vector<BFloat16> rows;
      for (std::int64_t t = 0; t < tokens; ++t) {
        rows.insert(rows.end(), &tensor.at(0, t, h, 0), &tensor.at(0, t, h, 0) + 64);
      }
      require_cuda(cudaMemcpy(view.row(0, 0, h), rows.data(), rows.size() * sizeof(BFloat16), cudaMemcpyHostToDevice),
                   "copy");
    }
    return view;
  };
  const auto equal_at = [&](std::int64_t i, const Tensor<BFloat16>& expected) {
    Tensor<BFloat16> tensor = zero_tensor<BFloat16>(expected.shape);
    for (std::int64_t h = 0; h < 2; ++h) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        require_cuda(
            cudaMemcpy(&tensor.at(0, t, h, 0), view_at(i).row(0, t, h), 64 * sizeof(BFloat16), cudaMemcpyDeviceToHost),
            "copy");
      }
    }
    return tensor == expected;
  };
  PlacedBackward<Simple, Config> near(problem, output_gradient, Layout::bhtd);
  auto args = near.args({});
  JRT_REQUIRE_OK(backward(args, Simple::execution()));
  const auto expected = near.read({});
  args.query = placed_at(0, problem.query);
  args.key = placed_at(1, problem.key);
  args.value = placed_at(2, problem.value);
  args.output = placed_at(3, near.prefill.output.read());
  args.output_gradient = placed_at(4, output_gradient);
  args.query_gradient = view_at(5);
  args.key_gradient = view_at(6);
  args.value_gradient = view_at(7);
  JRT_REQUIRE_OK(backward(args, Simple::execution()));
  require_cuda(cudaDeviceSynchronize(), "synchronize");
  CHECK(equal_at(5, expected.query));
  CHECK(equal_at(6, expected.key));
  CHECK(equal_at(7, expected.value));
  require_cuda(cudaFree(memory), "cudaFree");
}

}  // namespace
}  // namespace jrt::test
