// SPDX-License-Identifier: Apache-2.0
// The library in a ggml engine: a convolution, linear attention and a window as nodes of a graph, run by ggml's own
// threads, with keys and values in F16. The operator is chosen by numbers that a model's file would have. A prompt, then
// steps whose states are in slots; all of it is compared with the formulas in double.
#include <ggml-cpu.h>
#include <ggml.h>
#include <jrt/adapters/ggml.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <jrt/jrt.hpp>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

constexpr int threads = 2;
constexpr std::int64_t model_channels = 96, model_heads = 4, prompt_tokens = 50, steps = 10;

void check(const jrt::Status& status) {
  if (!status) {
    std::fprintf(stderr, "06_ggml: %s\n", status.c_str());
    std::exit(1);
  }
}

/// A layer's mixers: linear attention of these dimensions, and what stands beside it.
template <int d, int dv>
struct Layer : jrt::BasedLinearAttention<float, d, dv> {
  struct Window : jrt::SlidingWindowAttention<float, d, 16> {
    static constexpr int value_dim = dv;
  };
  using Convolution = jrt::GatedConvolution<float, 3>;
};
using Compiled = jrt::Operators<Layer<16, 64>, Layer<24, 48>>;

using Context = std::unique_ptr<ggml_context, void (*)(ggml_context*)>;
Context make_context() {
  return {ggml_init({std::size_t{16} << 20, nullptr, false}), &ggml_free};
}

ggml_tensor* random_tensor(ggml_context* context, std::int64_t columns, std::int64_t rows, double scale) {
  static std::mt19937 generator(1);
  std::normal_distribution<double> normal(0, scale);
  ggml_tensor* const tensor = ggml_new_tensor_2d(context, GGML_TYPE_F32, columns, rows);
  for (std::int64_t i = 0; i < columns * rows; ++i) {
    static_cast<float*>(tensor->data)[i] = static_cast<float>(normal(generator));
  }
  return tensor;
}

template <class Config>
struct States {
  jrt::StatePool<jrt::StateFormatOf<Config>> linear;
  jrt::StatePool<jrt::StateFormatOf<typename Config::Window>> window;
  jrt::StatePool<jrt::StateFormatOf<typename Config::Convolution>> convolution;
};

/// The layer in a graph: for a prompt with `Args` = PrefillArgs, for a step with DecodeArgs.
template <class Config, template <class> class Args>
struct LayerNodes {
  jrt::ggml::Node<Args<Config>> linear;
  jrt::ggml::Node<Args<typename Config::Window>> window;
  jrt::ggml::Node<Args<typename Config::Convolution>> convolution;
  ggml_tensor *q, *k, *v, *mixed, *output;

  void add(ggml_context* context, jrt::ggml::Session& session, ggml_tensor* x, ggml_tensor* weight, ggml_tensor* projection,
           States<Config>& states) {
    set_states(linear.args, states.linear.view());
    set_states(window.args, states.window.view());
    set_states(convolution.args, states.convolution.view());
    mixed = convolution.add(context, session, {.input = x, .weight = weight});
    constexpr std::int64_t d = Config::FeatureMap::input_dim, dv = Config::value_dim;
    ggml_tensor* const all = ggml_mul_mat(context, projection, mixed);
    const auto part = [&](std::int64_t dim, std::int64_t first) {
      return ggml_view_4d(context, all, dim, model_heads, x->ne[1], 1, static_cast<std::size_t>(dim) * 4, all->nb[1],
                          all->nb[2], static_cast<std::size_t>(first) * 4);
    };
    q = part(d, 0);
    k = ggml_cast(context, part(d, model_heads * d), GGML_TYPE_F16);
    v = ggml_cast(context, part(dv, 2 * model_heads * d), GGML_TYPE_F16);
    output = ggml_add(context, linear.add(context, session, {.query = q, .key = k, .value = v}),
                      window.add(context, session, {.query = q, .key = k, .value = v}));
  }

 private:
  template <class AnyArgs, class Pool>
  static void set_states(AnyArgs& args, const Pool& pool) {
    if constexpr (requires { args.source; }) {
      args.source = {pool};
    } else {
      args.final_state = {pool};
    }
  }
};

/// All that the formulas need, token after token, in double.
struct Sequence {
  std::vector<double> x, mixed, q, k, v, output;
};
void append(std::vector<double>& to, const ggml_tensor* tensor) {
  for (std::int64_t row = 0; row < ggml_nrows(tensor); ++row) {
    const std::int64_t token = row / tensor->ne[1], head = row % tensor->ne[1];
    const char* const data = static_cast<const char*>(tensor->data) + static_cast<std::size_t>(token) * tensor->nb[2] +
                             static_cast<std::size_t>(head) * tensor->nb[1];
    for (std::int64_t c = 0; c < tensor->ne[0]; ++c) {
      to.push_back(tensor->type == GGML_TYPE_F16 ? ggml_fp16_to_fp32(reinterpret_cast<const ggml_fp16_t*>(data)[c])
                                                 : reinterpret_cast<const float*>(data)[c]);
    }
  }
}

template <class Config>
struct InDouble : Config {
  using Element = double;
  using StateScalar = double;
  using Weight = double;
};

double relative_error(const std::vector<double>& y, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (y.at(i) - expected[i]) * (y.at(i) - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

/// Whether the layer's outputs are those of the formulas, of its own inputs.
template <class Config>
bool agrees(Sequence& s, const std::vector<double>& weight) {
  const std::int64_t tokens = prompt_tokens + steps;
  constexpr std::int64_t d = Config::FeatureMap::input_dim, dv = Config::value_dim;
  const auto view = [&](std::vector<double>& of, std::int64_t of_heads, std::int64_t dim) {
    return jrt::view_bthd(of.data(), {.batch = 1, .tokens = tokens, .heads = of_heads, .dim = dim});
  };
  std::vector<double> linear(s.output.size()), window(s.output.size()), mixed(s.mixed.size());
  jrt::PrefillArgs<InDouble<Config>> a{
      .query = view(s.q, model_heads, d), .key = view(s.k, model_heads, d), .value = view(s.v, model_heads, dv)};
  a.output = view(linear, model_heads, dv);
  jrt::reference::prefill(a);
  jrt::PrefillArgs<InDouble<typename Config::Window>> w{.query = a.query, .key = a.key, .value = a.value};
  w.output = view(window, model_heads, dv);
  jrt::reference::prefill(w);
  jrt::PrefillArgs<InDouble<typename Config::Convolution>> c{.input = view(s.x, 1, model_channels)};
  c.output = view(mixed, 1, model_channels);
  c.weight = weight.data();
  jrt::reference::prefill(c);
  for (std::size_t i = 0; i < linear.size(); ++i) {
    linear[i] += window[i];
  }
  const double error = relative_error(s.output, linear), convolution_error = relative_error(s.mixed, mixed);
  std::printf("relative error against the formulas in double: attention %.1e, convolution %.1e\n", error,
              convolution_error);
  return error <= 4e-6 && convolution_error <= 2e-6;
}

template <class Config>
bool run() {
  const Context weights = make_context();
  ggml_tensor* const weight = random_tensor(weights.get(), 3, model_channels, 0.6);
  ggml_tensor* const projection = random_tensor(weights.get(), model_channels,
                                                model_heads * (2 * Config::FeatureMap::input_dim + Config::value_dim), 0.1);
  States<Config> states;
  check(decltype(states.linear)::allocate(1, model_heads, states.linear));
  check(decltype(states.window)::allocate(1, model_heads, states.window));
  check(decltype(states.convolution)::allocate(1, model_channels, states.convolution));

  Sequence sequence;
  std::vector<std::byte> workspace;
  const auto pass = [&]<template <class> class Args>(std::int64_t tokens) {
    LayerNodes<Config, Args> layer;
    const Context context = make_context();
    jrt::ggml::Session session(threads);
    ggml_tensor* const x = random_tensor(context.get(), model_channels, tokens, 1);
    layer.add(context.get(), session, x, weight, projection, states);
    workspace.resize(session.workspace_bytes);
    session.workspace = {workspace.data(), workspace.size()};
    ggml_cgraph* const graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, layer.output);
    ggml_graph_compute_with_ctx(context.get(), graph, threads);
    check(session.status);
    append(sequence.x, x), append(sequence.mixed, layer.mixed), append(sequence.q, layer.q);
    append(sequence.k, layer.k), append(sequence.v, layer.v), append(sequence.output, layer.output);
  };
  pass.template operator()<jrt::PrefillArgs>(prompt_tokens);
  for (std::int64_t step = 0; step < steps; ++step) {
    pass.template operator()<jrt::DecodeArgs>(1);
  }
  std::vector<double> weight_in_double;
  append(weight_in_double, weight);
  return agrees<Config>(sequence, weight_in_double);
}

int main(int argc, char** argv) {
  const jrt::OperatorDescription wanted{
      .kind = "linear", .d = argc > 2 ? std::atoi(argv[1]) : 16, .dv = argc > 2 ? std::atoi(argv[2]) : 64};
  int which = 0;
  check(Compiled::find(wanted, which));
  const bool good = Compiled::visit(which, []<class Config>(std::type_identity<Config>) { return run<Config>(); });
  std::printf("%s\n", good ? "A prompt of 50 tokens and 10 steps in ggml graphs: as they should be." : "MISMATCH");
  return good ? 0 : 1;
}
