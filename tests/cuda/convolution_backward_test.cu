// SPDX-License-Identifier: Apache-2.0
// What only a device can get wrong of the convolution's gradients: replays, arrays that the host cannot check, distances.
#include <jrt/cuda.cuh>

#include <doctest/doctest.h>

#include <jrt/backward.hpp>
#include <jrt/mixer/gated_convolution.hpp>
#include <string>
#include <vector>

#include "support/convolution_gradients.hpp"
#include "support/cuda_backend.cuh"

namespace jrt::test {
namespace {

using Config = GatedConvolution<BFloat16, 3>;
using Args = BackwardArgs<Config>;

/// A call with all gradients, in device memory.
struct Call {
  explicit Call(const ConvolutionGradientProblem<Config>& problem)
      : count(problem.sequences()),
        channels(problem.channels()),
        placed(problem.forward, Layout::bthd),
        output_gradient(problem.output_gradient, Layout::bthd),
        input_gradient(problem.output_gradient.shape, Layout::bthd),
        gate_gradient(problem.output_gradient.shape, Layout::bthd),
        initial(problem.initial),
        final_gradient(problem.final_gradient),
        weight_gradient(std::vector<BFloat16>(problem.forward.weight.size(), poison<BFloat16>())),
        bias_gradient(std::vector<BFloat16>(static_cast<std::size_t>(channels), poison<BFloat16>())),
        initial_gradient(std::vector<float>(problem.state_numbers(), 7.0F)),
        args(placed.args<Args>()) {
    args.output_gradient = output_gradient.view();
    args.input_gradient = input_gradient.view();
    args.gate_gradient = gate_gradient.view();
    args.initial_state = {view_pool<Args::Format>(initial.data(), count, channels)};
    args.final_state_gradient = {view_pool<Args::GradientFormat>(final_gradient.data(), count, channels)};
    args.initial_state_gradient = {view_pool<Args::GradientFormat>(initial_gradient.data(), count, channels)};
    args.weight_gradient = weight_gradient.data();
    args.bias_gradient = bias_gradient.data();
  }

  [[nodiscard]] ConvolutionGradientsOf<Config> gradients() const {
    return {input_gradient.read(), gate_gradient.read(), weight_gradient.read(), bias_gradient.read(),
            initial_gradient.read()};
  }

  std::int64_t count;
  std::int64_t channels;
  PlacedConvolution<Concurrent, Config> placed;
  Placed<Concurrent, BFloat16> output_gradient;
  Placed<Concurrent, BFloat16> input_gradient;
  Placed<Concurrent, BFloat16> gate_gradient;
  Concurrent::Array<BFloat16> initial;
  Concurrent::Array<float> final_gradient;
  Concurrent::Array<BFloat16> weight_gradient;
  Concurrent::Array<BFloat16> bias_gradient;
  Concurrent::Array<float> initial_gradient;
  Args args;
};

template <class T>
void overwrite(Concurrent::Array<T>& array, const std::vector<T>& values) {
  require_cuda(cudaMemcpy(array.data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
  require_cuda(cudaDeviceSynchronize(), "synchronize");
}

TEST_CASE("gradients replay from a graph, with lengths and slots as they are then") {
  const ConvolutionGradientProblem<Config> problem({.batch = 3, .tokens = 300, .channels = 64});
  Call call(problem);
  Concurrent::Array<std::int32_t> lengths({0, 0, 0});
  Concurrent::Array<std::int32_t> slots({0, 0, 0});
  call.args.sequences.seq_lens = lengths.data();
  call.args.initial_state_gradient.slots = slots.data();
  const Cuda on = Concurrent::execution();
  const std::size_t bytes = backward_workspace_bytes(call.args, on);
  Concurrent::Array<std::byte> memory{std::vector<std::byte>(bytes)};
  const auto enqueue = [&] { JRT_REQUIRE_OK(backward(call.args, {memory.data(), bytes}, on)); };
  require_cuda(cudaStreamBeginCapture(on.stream(), cudaStreamCaptureModeGlobal), "begin capture");
  enqueue();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  require_cuda(cudaStreamEndCapture(on.stream(), &graph), "end capture");
  require_cuda(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  const struct {
    std::vector<std::int32_t> lengths, slots;
  } replays[] = {{{300, 300, 300}, {0, 1, 2}}, {{300, 0, 129}, {2, skip_slot, 0}}, {{1, 65, 256}, {1, 2, 0}}};
  for (const auto& replay : replays) {
    overwrite(lengths, replay.lengths);
    overwrite(slots, replay.slots);
    overwrite(call.initial_gradient, std::vector<float>(problem.state_numbers(), 7.0F));
    enqueue();
    const auto expected = call.gradients();
    overwrite(call.initial_gradient, std::vector<float>(problem.state_numbers(), 7.0F));
    overwrite(call.weight_gradient, std::vector<BFloat16>(problem.forward.weight.size(), poison<BFloat16>()));
    require_cuda(cudaMemset(call.args.input_gradient.data, 0xff, 3 * 300 * 64 * sizeof(BFloat16)), "poison");
    require_cuda(cudaDeviceSynchronize(), "synchronize");
    require_cuda(cudaGraphLaunch(executable, on.stream()), "replay");
    CHECK(call.gradients() == expected);
  }
  require_cuda(cudaGraphExecDestroy(executable), "destroy");
  require_cuda(cudaGraphDestroy(graph), "destroy");
}

TEST_CASE("what the host can see of the gradients' slots is checked before anything is enqueued") {
  const ConvolutionGradientProblem<Config> problem({.batch = 3, .tokens = 9, .channels = 8});
  Call call(problem);
  call.args.initial_state_gradient.pool.slots = 2;
  const Status status = backward(call.args, Concurrent::execution());
  CHECK(status.message().find("'initial_state_gradient' has slots = 2, but must be at least 3") != std::string_view::npos);
  CHECK(call.initial_gradient.read() == std::vector<float>(problem.state_numbers(), 7.0F));
}

TEST_CASE("arrays with impossible entries do no harm to gradients: nothing outside the tensors is touched") {
  const ConvolutionGradientProblem<Config> problem({.batch = 4, .tokens = 40, .channels = 24});
  Call call(problem);
  Concurrent::Array<std::int32_t> lengths({-1, 1 << 30, 40, 40});
  Concurrent::Array<std::int32_t> pads({3, -9, 1 << 30, 0});
  Concurrent::Array<std::int32_t> slots({0, 1, 2, 99});
  call.args.sequences.seq_lens = lengths.data();
  call.args.sequences.left_pads = pads.data();
  call.args.initial_state_gradient.slots = slots.data();
  JRT_REQUIRE_OK(backward(call.args, Concurrent::execution()));
  CHECK(call.input_gradient.surroundings_intact());
  CHECK(call.gate_gradient.surroundings_intact());
  const auto gradients = call.gradients();
  for (const auto number : batch_slice(gradients.input, 3).values) {
    CHECK(convert<float>(number) == 0);  // slot 99 is none of the pool's
  }
  const auto each = static_cast<std::ptrdiff_t>(problem.state_numbers() / 4);
  CHECK(std::vector<float>(gradients.initial.begin() + 3 * each, gradients.initial.end()) ==
        std::vector<float>(static_cast<std::size_t>(each), 7.0F));
}

TEST_CASE("gradients of tokens more than 2^31 elements apart") {
  constexpr std::int64_t tokens = 6;
  constexpr std::int64_t channels = 64;
  constexpr std::int64_t stride = (std::int64_t{1} << 29) + 64;
  const ConvolutionGradientProblem<Config> problem({.batch = 1, .tokens = tokens, .channels = channels});
  Call call(problem);
  JRT_REQUIRE_OK(backward(call.args, Concurrent::execution()));
  const auto expected = call.gradients();
  // All five tensors are columns of one.
  void* memory = nullptr;
  if (cudaMalloc(&memory, static_cast<std::size_t>(tokens * stride) * sizeof(BFloat16)) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    MESSAGE("skipped: the device has too little memory");
    return;
  }
  const auto column = [&](std::int64_t i) {
    auto view = view_bthd(static_cast<BFloat16*>(memory) + i * channels, {1, tokens, 1, channels});
    view.batch_stride = tokens * stride;
    view.token_stride = stride;
    return view;
  };
  const auto copy = [](const TensorView<const BFloat16>& from, const TensorView<BFloat16>& to) {
    require_cuda(cudaMemcpy2D(to.data, static_cast<std::size_t>(to.token_stride) * sizeof(BFloat16), from.data,
                              static_cast<std::size_t>(from.token_stride) * sizeof(BFloat16),
                              static_cast<std::size_t>(channels) * sizeof(BFloat16), static_cast<std::size_t>(tokens),
                              cudaMemcpyDeviceToDevice),
                 "copy");
    require_cuda(cudaDeviceSynchronize(), "synchronize");
  };
  Args far = call.args;
  copy(far.input, column(0));
  copy(far.gate, column(1));
  copy(far.output_gradient, column(2));
  far.input = column(0);
  far.gate = column(1);
  far.output_gradient = column(2);
  far.input_gradient = column(3);
  far.gate_gradient = column(4);
  JRT_REQUIRE_OK(backward(far, Concurrent::execution()));
  require_cuda(cudaDeviceSynchronize(), "synchronize");
  copy(far.input_gradient, call.args.input_gradient);
  copy(far.gate_gradient, call.args.gate_gradient);
  CHECK(call.gradients() == expected);
  require_cuda(cudaFree(memory), "cudaFree");
}

}  // namespace
}  // namespace jrt::test
