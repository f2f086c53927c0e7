// SPDX-License-Identifier: Apache-2.0
// A stack's backward pass is that of its mixers, the last one first. What the mixers compute has tests of its own.
#include <doctest/doctest.h>

#include <jrt/backward.hpp>
#include <jrt/cpu.hpp>
#include <jrt/mixer/stack.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "support/linear_problem.hpp"
#include "support/tensor.hpp"

namespace jrt::test {
namespace {

using Short = GatedConvolution<float, 3>;
using Global = PrefixLinearAttention<float, 8, 12>;
using Local = SlidingWindowAttention<float, 8, 5>;
using Whole = Stack<Layer<Short, 10>, Layer<Global, 2>, Layer<Local, 2>>;

constexpr std::int64_t batch = 2;
constexpr std::int64_t tokens = 40;
constexpr TensorShape channels{batch, tokens, 1, 10};
constexpr TensorShape narrow{batch, tokens, 2, 8};
constexpr TensorShape wide{batch, tokens, 2, 12};

/// Inputs of all layers, what their prefills saved, and their gradients.
struct Model {
  Tensor<float> input = random_tensor<float>(channels, 1);
  Tensor<float> gate = random_tensor<float>(channels, 2);
  std::vector<float> weight = random_tensor<float>({1, 1, 10, 3}, 3).values;
  Tensor<float> of_convolution = random_tensor<float>(channels, 4);
  Tensor<float> input_gradient = zero_tensor<float>(channels);
  Tensor<float> gate_gradient = zero_tensor<float>(channels);
  std::vector<float> weight_gradient = std::vector<float>(weight.size());

  Tensor<float> query = random_tensor<float>(narrow, 5);
  Tensor<float> key = random_tensor<float>(narrow, 6);
  Tensor<float> value = random_tensor<float>(wide, 7);
  Tensor<float> output = zero_tensor<float>(wide);
  Tensor<float> denominators = zero_tensor<float>({batch, tokens, 2, 1});
  Tensor<float> of_linear = random_tensor<float>(wide, 8);
  Tensor<float> query_gradient = zero_tensor<float>(narrow);
  Tensor<float> key_gradient = zero_tensor<float>(narrow);
  Tensor<float> value_gradient = zero_tensor<float>(wide);

  Tensor<float> local_value = random_tensor<float>(narrow, 9);
  Tensor<float> local_output = zero_tensor<float>(narrow);
  Tensor<float> log_sum_exp = zero_tensor<float>({batch, tokens, 2, 1});
  Tensor<float> of_window = random_tensor<float>(narrow, 10);
  Tensor<float> local_gradients[3] = {zero_tensor<float>(narrow), zero_tensor<float>(narrow), zero_tensor<float>(narrow)};

  /// Everything that `backward` writes.
  [[nodiscard]] std::vector<std::vector<float>> gradients() const {
    return {input_gradient.values,     gate_gradient.values,      weight_gradient,
            query_gradient.values,     key_gradient.values,       value_gradient.values,
            local_gradients[0].values, local_gradients[1].values, local_gradients[2].values};
  }

  BackwardArgs<Whole> args() {
    BackwardArgs<Whole> args;
    auto& [convolution, linear, window] = args.layers;
    convolution.input = view_of(input);
    convolution.gate = view_of(gate);
    convolution.weight = weight.data();
    convolution.output_gradient = view_of(of_convolution);
    convolution.input_gradient = view_of(input_gradient);
    convolution.gate_gradient = view_of(gate_gradient);
    convolution.weight_gradient = weight_gradient.data();

    PrefillArgs<Global> forward{.query = view_of(query), .key = view_of(key), .value = view_of(value)};
    forward.output = view_of(output);
    forward.denominators = view_of(denominators);
    JRT_REQUIRE_OK(prefill(forward, Cpu{}));
    linear.query = view_of(query);
    linear.key = view_of(key);
    linear.value = view_of(value);
    linear.output = view_of(output);
    linear.denominators = view_of(denominators);
    linear.output_gradient = view_of(of_linear);
    linear.query_gradient = view_of(query_gradient);
    linear.key_gradient = view_of(key_gradient);
    linear.value_gradient = view_of(value_gradient);

    PrefillArgs<Local> near{.query = view_of(query), .key = view_of(key), .value = view_of(local_value)};
    near.output = view_of(local_output);
    near.log_sum_exp = view_of(log_sum_exp);
    JRT_REQUIRE_OK(prefill(near, Cpu{}));
    window.query = view_of(query);
    window.key = view_of(key);
    window.value = view_of(local_value);
    window.output = view_of(local_output);
    window.log_sum_exp = view_of(log_sum_exp);
    window.output_gradient = view_of(of_window);
    window.query_gradient = view_of(local_gradients[0]);
    window.key_gradient = view_of(local_gradients[1]);
    window.value_gradient = view_of(local_gradients[2]);
    return args;
  }
};

TEST_CASE("a stack's gradients are those of its mixers, and the last layer comes first") {
  Model apart;
  const auto each = apart.args();
  JRT_REQUIRE_OK(backward(std::get<0>(each.layers), Cpu{}));
  JRT_REQUIRE_OK(backward(std::get<1>(each.layers), Cpu{}));
  JRT_REQUIRE_OK(backward(std::get<2>(each.layers), Cpu{}));
  for (const auto& gradient : apart.gradients()) {
    CHECK(relative_error(gradient, std::vector<float>(gradient.size())) > 1);
  }

  Model together;
  const auto args = together.args();
  std::vector<std::byte> memory(backward_workspace_bytes(args, Cpu{}));
  std::vector<int> order;
  const auto note = [&](int layer) {
    order.push_back(layer);
    return Status{};
  };
  JRT_REQUIRE_OK(backward(args, note, Workspace{memory.data(), memory.size()}, Cpu{}));
  CHECK(order == std::vector<int>{2, 1, 0});
  CHECK(together.gradients() == apart.gradients());
  Model again;
  JRT_REQUIRE_OK(backward(again.args(), Cpu{}));
  CHECK(again.gradients() == apart.gradients());
}

TEST_CASE("what is wrong with a layer is said with its number, before any layer runs") {
  const auto refuses = [](const std::string& sentence, const auto& spoil) {
    Model model;
    auto args = model.args();
    spoil(args);
    const auto untouched = model.gradients();
    const Status status = backward(args, Cpu{});
    INFO(std::string(status.message()));
    CHECK(status.code() == StatusCode::invalid_argument);
    CHECK(std::string(status.message()).find(sentence) != std::string::npos);
    CHECK(model.gradients() == untouched);
  };
  refuses("layer 1: backward: argument 'output' is missing",
          [](BackwardArgs<Whole>& args) { std::get<1>(args.layers).output = {}; });
  refuses("layer 2: backward: argument 'output_gradient' has tokens = 39, but layer 0's is 40",
          [](BackwardArgs<Whole>& args) { std::get<2>(args.layers).output_gradient.tokens = 39; });
  StatePool<Whole> states;
  JRT_REQUIRE_OK(StatePool<Whole>::allocate(batch, 1, states));
  refuses("layer 2: backward: argument 'initial_state'",
          [&](BackwardArgs<Whole>& args) { args.initial_state = {states.view()}; });
}

}  // namespace
}  // namespace jrt::test
