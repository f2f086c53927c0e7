// SPDX-License-Identifier: Apache-2.0
#include <ggml-cpu.h>
#include <ggml.h>
#include <jrt/adapters/ggml.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <jrt/cpu.hpp>
#include <memory>
#include <string>
#include <vector>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/convolution_problem.hpp"
#include "support/linear_problem.hpp"
#include "support/window_problem.hpp"

namespace jrt::test {
namespace {

/// A context with memory for small tensors, and graphs of nodes of the library in it.
class Graph {
 public:
  explicit Graph(int threads = 2)
      : session(threads), threads_(threads), context_(ggml_init({std::size_t{16} << 20, nullptr, false}), &ggml_free) {}

  /// (batch, tokens, heads, dim), as ggml has it.
  template <class E>
  ggml_tensor* tensor(const Tensor<E>& from) {
    const TensorShape& s = from.shape;
    ggml_tensor* const to = ggml_new_tensor_4d(context(), ggml::type_of<E>, s.dim, s.heads, s.tokens, s.batch);
    std::memcpy(to->data, from.values.data(), from.values.size() * sizeof(E));
    return to;
  }
  /// (batch, tokens, 1, channels) as ne = (channels, tokens, batch).
  template <class E>
  ggml_tensor* channels(const Tensor<E>& from) {
    return ggml_reshape_3d(context(), tensor(from), from.shape.dim, from.shape.tokens, from.shape.batch);
  }
  template <class E>
  ggml_tensor* matrix(const std::vector<E>& from, std::int64_t columns) {
    return ggml_reshape_2d(context(), tensor(Tensor<E>{{1, 1, 1, std::ssize(from)}, from}), columns,
                           std::ssize(from) / columns);
  }

  void compute(const std::vector<ggml_tensor*>& outputs) {
    memory_.resize(session.workspace_bytes);
    session.workspace = {memory_.data(), memory_.size()};
    compute_as_it_is(outputs);
  }
  void compute_as_it_is(const std::vector<ggml_tensor*>& outputs) {
    ggml_cgraph* const graph = ggml_new_graph(context());
    for (ggml_tensor* const output : outputs) {
      ggml_build_forward_expand(graph, output);
    }
    REQUIRE(ggml_graph_compute_with_ctx(context(), graph, threads_) == GGML_STATUS_SUCCESS);
  }
  ggml_context* context() { return context_.get(); }

  ggml::Session session;

 private:
  int threads_;
  std::unique_ptr<ggml_context, void (*)(ggml_context*)> context_;
  std::vector<std::byte> memory_;
};

template <class E>
Tensor<E> read(const ggml_tensor* from, const TensorShape& shape) {
  Tensor<E> to = zero_tensor<E>(shape);
  REQUIRE(ggml_nbytes(from) == to.values.size() * sizeof(E));
  std::memcpy(to.values.data(), from->data, ggml_nbytes(from));
  return to;
}
bool all_nan(const ggml_tensor* tensor) {
  const auto* const values = static_cast<const float*>(tensor->data);
  bool all = true;
  for (std::int64_t i = 0; i < ggml_nelements(tensor); ++i) {
    all = all && std::isnan(values[i]);
  }
  return all;
}

using Linear = Prefix<float>;
using Format = StateFormatOf<Linear>;

TEST_CASE("prefill and steps of linear attention, on any number of ggml's threads") {
  Problem<Linear> problem({.batch = 2, .tokens = 40, .prefix = 20, .heads = 2, .query_heads = 4});
  const auto expected = run_prefill<Simple>(problem);
  for (const int threads : {1, 2, 3}) {
    CAPTURE(threads);
    Graph graph(threads);
    StatePool<Format> pool;
    JRT_REQUIRE_OK(StatePool<Format>::allocate(2, 2, pool));
    ggml::Node<PrefillArgs<Linear>> prompt;
    prompt.args.final_state = {pool.view()};
    ggml_tensor* const y = prompt.add(graph.context(), graph.session,
                                      {.query = graph.tensor(problem.query),
                                       .key = graph.tensor(problem.key),
                                       .value = graph.tensor(problem.value),
                                       .key_encoder = graph.tensor(problem.key_encoder),
                                       .value_encoder = graph.tensor(problem.value_encoder)});
    graph.compute({y});
    INFO(std::string(graph.session.status.message()));
    CHECK(graph.session.status.ok());
    CHECK(relative_error(read<float>(y, problem.output_shape()).values, expected.output.values) <= tolerance<float>());

    // A step computed three times in one graph, in slots that change in between.
    std::vector<std::int32_t> slots{0, 1};
    const auto tokens = [](const Tensor<float>& all) { return token_slice(all, 3, 1); };
    Problem<Linear> one = problem;
    one.query = tokens(problem.query), one.key = tokens(problem.key), one.value = tokens(problem.value);
    ggml::Node<DecodeArgs<Linear>> step;
    step.args.source = {pool.view(), slots.data()};
    const std::vector<float> before(pool.view().data, pool.view().head(1, 1) + Format::head_elements);
    ggml_tensor* const stepped =
        step.add(graph.context(), graph.session,
                 {.query = graph.tensor(one.query), .key = graph.tensor(one.key), .value = graph.tensor(one.value)});
    graph.compute({stepped});
    slots = {1, skip_slot};
    graph.compute({stepped});
    CHECK(graph.session.status.ok());
    auto states = before;
    Tensor<float> output = zero_tensor<float>(one.output_shape());
    for (const std::vector<std::int32_t>& of : {std::vector<std::int32_t>{0, 1}, {1, skip_slot}}) {
      DecodeArgs<Linear> args{.query = view_of(one.query), .key = view_of(one.key), .value = view_of(one.value)};
      args.output = view_of(output);
      args.source = {view_pool<Format>(states.data(), 2, 2), of.data()};
      JRT_REQUIRE_OK(decode_step(args, Cpu{}));
    }
    CHECK(read<float>(stepped, one.output_shape()) == output);
    CHECK(std::equal(states.begin(), states.end(), pool.view().data));
  }
}

TEST_CASE("queries in F32 with keys and values in 16 bits are the operator of float on the same numbers") {
  Problem<Linear> problem({.batch = 1, .tokens = 30, .heads = 2});
  const auto key = converted<Half>(problem.key);
  const auto value = converted<BFloat16>(problem.value);
  problem.key = converted<float>(key);
  problem.value = converted<float>(value);
  Graph graph;
  ggml::Node<PrefillArgs<Linear>> node;
  // The cache's order is (dim, tokens, heads): as ggml's own attention has it.
  ggml_tensor* const by_heads = ggml_cont(graph.context(), ggml_permute(graph.context(), graph.tensor(key), 0, 2, 1, 3));
  ggml_tensor* const y = node.add(graph.context(), graph.session,
                                  {.query = graph.tensor(problem.query),
                                   .key = ggml_permute(graph.context(), by_heads, 0, 2, 1, 3),
                                   .value = graph.tensor(value)});
  graph.compute({y});
  INFO(std::string(graph.session.status.message()));
  CHECK(graph.session.status.ok());
  CHECK(read<float>(y, problem.output_shape()) == run_prefill<Simple>(problem).output);
}

TEST_CASE("windows and convolutions") {
  using Window = SlidingWindowAttention<float, 16, 5>;
  const WindowProblem<Window> problem({.batch = 2, .tokens = 20});
  using Convolution = GatedConvolution<float, 3>;
  const ConvolutionProblem<Convolution> convolution({.batch = 2, .tokens = 9, .channels = 10});
  Graph graph;
  ggml::Node<PrefillArgs<Window>> window;
  ggml_tensor* const y = window.add(
      graph.context(), graph.session,
      {.query = graph.tensor(problem.query), .key = graph.tensor(problem.key), .value = graph.tensor(problem.value)});
  ggml::Node<PrefillArgs<Convolution>> mixed;
  ggml_tensor* const u = mixed.add(graph.context(), graph.session,
                                   {.input = graph.channels(convolution.input),
                                    .gate = graph.channels(convolution.gate),
                                    .weight = graph.matrix(convolution.weight, 3),
                                    .bias = graph.matrix(convolution.bias, 10)});
  graph.compute({y, u});
  INFO(std::string(graph.session.status.message()));
  CHECK(graph.session.status.ok());
  CHECK(read<float>(y, problem.query.shape) == run_window<Simple>(problem).output);
  CHECK(read<float>(u, convolution.input.shape) == run_convolution<Simple>(convolution).output);
}

/// What a prefill with these tensors says; its output is NaN then, and the state what it was.
std::string refusal(Graph& graph, const ggml::AttentionTensors& tensors) {
  StatePool<Format> pool;
  JRT_REQUIRE_OK(StatePool<Format>::allocate(1, 2, pool));
  ggml::Node<PrefillArgs<Linear>> node;
  node.args.final_state = {pool.view()};
  ggml_tensor* const y = node.add(graph.context(), graph.session, tensors);
  REQUIRE(y != nullptr);
  graph.compute({y});
  CHECK(graph.session.status.code() == StatusCode::invalid_argument);
  CHECK(all_nan(y));
  CHECK(pool.view().data[0] == 0);
  std::string message(graph.session.status.message());
  graph.session.status = {};
  return message;
}

TEST_CASE("what a node cannot read is said in the session, and its output is NaN") {
  Problem<Linear> problem({.batch = 1, .tokens = 8, .heads = 2});
  Graph graph;
  ggml_context* const context = graph.context();
  const ggml::AttentionTensors good{
      .query = graph.tensor(problem.query), .key = graph.tensor(problem.key), .value = graph.tensor(problem.value)};
  auto tensors = good;
  tensors.key = ggml_new_tensor_4d(context, GGML_TYPE_Q8_0, 32, 2, 8, 1);
  CHECK(refusal(graph, tensors) == "ggml: argument 'key' has type q8_0, but must have f32.");
  tensors.key = ggml_new_tensor_4d(context, GGML_TYPE_I32, 16, 2, 8, 1);
  CHECK(refusal(graph, tensors) == "ggml: argument 'key' has type i32, but must have f32.");
  tensors.key = ggml_permute(context, graph.tensor(random_tensor<float>({1, 8, 16, 2}, 1)), 1, 0, 2, 3);
  CHECK(refusal(graph, tensors) == "ggml: argument 'key' has nb[0] = 8, but must have one element's 4.");
  tensors = good;
  tensors.value = ggml_view_4d(context, good.value, 24, 1, 3, 1, 98, 2 * 24 * 4, 8 * 2 * 24 * 4, 0);
  tensors.value->ne[1] = 2;
  CHECK(refusal(graph, tensors) == "ggml: argument 'value' has nb[1] = 98, but must have a multiple of 4.");
  tensors = good;
  tensors.key = graph.tensor(random_tensor<float>({1, 8, 2, 15}, 1));
  CHECK(refusal(graph, tensors) == "prefill: argument 'key' has dim = 15, but the operator's is 16.");
  CHECK(refusal(graph, {.query = good.query, .key = good.key, .value = good.value, .key_encoder = good.key})
            .find("value_encoder") != std::string::npos);

  // A missing tensor shows at once, since the node has no shape.
  ggml::Node<PrefillArgs<Linear>> node;
  CHECK(node.add(context, graph.session, {.query = good.query, .value = good.value}) == nullptr);
  CHECK(graph.session.status.message() == "ggml: argument 'key' is missing: it is null.");
  graph.session.status = {};
  ggml::Node<DecodeArgs<Linear>> step;
  ggml_tensor* const y = step.add(
      context, graph.session,
      {.query = good.query, .key = good.key, .value = good.value, .key_encoder = good.key, .value_encoder = good.value});
  graph.compute({y});
  CHECK(graph.session.status.message() ==
        "ggml: argument 'key_encoder' is given, but this operation has no encoder region.");
}

TEST_CASE("parameters of a convolution have their shape") {
  using Convolution = GatedConvolution<float, 3>;
  const ConvolutionProblem<Convolution> problem({.batch = 1, .tokens = 9, .channels = 10});
  const auto refusal_of = [&](std::int64_t taps, std::int64_t batch) {
    Graph graph;
    ggml::Node<PrefillArgs<Convolution>> node;
    ggml_tensor* input = graph.channels(problem.input);
    if (batch != 1) {
      input = ggml_new_tensor_4d(graph.context(), GGML_TYPE_F32, 10, 9, 1, batch);
    }
    ggml_tensor* const y =
        node.add(graph.context(), graph.session,
                 {.input = input, .weight = ggml_new_tensor_2d(graph.context(), GGML_TYPE_F32, taps, 10)});
    graph.compute({y});
    CHECK(all_nan(y));
    return std::string(graph.session.status.message());
  };
  CHECK(refusal_of(4, 1) == "ggml: argument 'weight' has ne[0] = 4, but must have 3.");
  CHECK(refusal_of(3, 2) == "ggml: argument 'input' has ne[3] = 2, but must have 1.");
}

TEST_CASE("after an error no node of the graph does anything, until the status is reset") {
  Problem<Linear> problem({.batch = 1, .tokens = 8, .heads = 2});
  const auto half_key = converted<Half>(problem.key);
  problem.key = converted<float>(half_key);
  Graph graph;
  StatePool<Format> pool;
  JRT_REQUIRE_OK(StatePool<Format>::allocate(1, 2, pool));
  ggml::Node<PrefillArgs<Linear>> first;
  ggml::Node<PrefillArgs<Linear>> second;
  second.args.final_state = {pool.view()};
  const ggml::AttentionTensors tensors{
      .query = graph.tensor(problem.query), .key = graph.tensor(half_key), .value = graph.tensor(problem.value)};
  ggml_tensor* const y = first.add(graph.context(), graph.session, tensors);
  ggml_tensor* const z = second.add(graph.context(), graph.session, tensors);
  graph.session.workspace = {};
  graph.compute_as_it_is({y, z});
  CHECK(graph.session.status.message() ==
        "ggml: the session's workspace has 0 bytes, but 1087 are needed for tensors in 16 bits.");
  CHECK(all_nan(y));
  CHECK(all_nan(z));
  graph.compute({y, z});
  CHECK(all_nan(z));  // the error has not been taken note of
  CHECK(pool.view().data[0] == 0);
  graph.session.status = {};
  graph.compute({y, z});
  CHECK(graph.session.status.ok());
  CHECK(read<float>(z, problem.output_shape()) == run_prefill<Simple>(problem).output);
  CHECK(pool.view().data[0] != 0);
}

}  // namespace
}  // namespace jrt::test
