// SPDX-License-Identifier: Apache-2.0
// The backward pass of linear attention: all gradients, 16 heads, bfloat16, normalised, a prefix of half the tokens unless
// causal, cold caches. Checked first against the portable kernels, which the tests tie to the formula. Names are
//
//     backward/<operator>/bfloat16/dv<dv>/B:<sequences>/N:<tokens>[/<what is special>...]
//     forward_backward/...                  the prefill that stores outputs and denominators, and it
//
// The bytes that must move are each tensor once: inputs, outputs, denominators and gradients.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <jrt/backward.hpp>
#include <string>
#include <vector>

#include "cuda/linear/prefill_problem.cuh"

namespace jrt::bench {
namespace {

/// Gradients for the tensors of a prefill, laid out as these are.
template <class Config>
class Gradients {
 public:
  using E = typename Config::Element;

  explicit Gradients(BackwardArgs<Config> args) : args_(args) {
    args_.query_gradient = like(args.query);
    args_.key_gradient = like(args.key);
    args_.value_gradient = like(args.value);
    if (Config::Mask::reads_encoder) {
      args_.key_encoder_gradient = like(args.key_encoder);
      args_.value_encoder_gradient = like(args.value_encoder);
    }
  }

  [[nodiscard]] const BackwardArgs<Config>& args() const { return args_; }
  [[nodiscard]] std::vector<TensorView<E>> all() const {
    std::vector<TensorView<E>> views{args_.query_gradient, args_.key_gradient, args_.value_gradient};
    if (Config::Mask::reads_encoder) {
      views.push_back(args_.key_encoder_gradient);
      views.push_back(args_.value_encoder_gradient);
    }
    return views;
  }

 private:
  TensorView<E> like(const TensorView<const E>& input) {
    const DeviceArray<E>& memory = memory_.emplace_back(input.batch * input.batch_stride);
    memory.poison();
    return {memory.data(), input.batch,        input.tokens,       input.heads,
            input.dim,     input.batch_stride, input.token_stride, input.head_stride};
  }

  BackwardArgs<Config> args_;
  std::deque<DeviceArray<E>> memory_;
};

/// The larger of the relative errors of sampled rows, gradient by gradient.
template <class E>
double difference(const std::vector<TensorView<E>>& actual, const std::vector<TensorView<E>>& expected) {
  double worst = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    RelativeError error;
    const auto& view = actual[i];
    for (std::int64_t s = 0; s < 64; ++s) {
      const std::int64_t b = s * 7 % view.batch;
      const std::int64_t t = (view.tokens - 1) * (s + 1) / 64;
      const std::int64_t h = s * 5 % view.heads;
      const auto numbers = numbers_at(view.row(b, t, h), view.dim);
      const auto others = numbers_at(expected[i].row(b, t, h), view.dim);
      for (std::size_t c = 0; c < numbers.size(); ++c) {
        error.add(numbers[c], others[c]);
      }
    }
    worst = error.value() > worst || error.value() != error.value() ? error.value() : worst;
  }
  return worst;
}

template <class Config>
void backward_linear(benchmark::State& state, const PrefillCase& problem_case, bool with_forward) {
  using E = typename Config::Element;
  const PrefillProblem<Config> problem(problem_case);
  PrefillArgs<Config> forward = problem.args();
  forward.final_state = {};
  const auto& output = forward.output;
  const std::int64_t rows = output.batch * output.tokens * output.heads;
  const DeviceArray<float> denominators(rows);
  forward.denominators = view_bhtd(denominators.data(), {output.batch, output.tokens, output.heads, 1});
  const auto output_gradient = random_array<E>(rows * Config::value_dim, 99);
  BackwardArgs<Config> args;
  args.query = forward.query;
  args.key = forward.key;
  args.value = forward.value;
  args.key_encoder = forward.key_encoder;
  args.value_encoder = forward.value_encoder;
  args.sequences = forward.sequences;
  args.output = output;
  args.denominators = forward.denominators;
  args.output_gradient = output;
  args.output_gradient.data = output_gradient.data();
  const Gradients<Config> gradients(args);
  const DeviceArray<std::byte> forward_memory(static_cast<std::int64_t>(prefill_workspace_bytes(forward, timed_stream())));
  const DeviceArray<std::byte> memory(
      static_cast<std::int64_t>(backward_workspace_bytes(gradients.args(), timed_stream())));
  const auto workspace = [](const DeviceArray<std::byte>& bytes) {
    return Workspace{bytes.data(), static_cast<std::size_t>(bytes.size())};
  };
  const auto call = [&] {
    if (with_forward) {
      require(prefill(forward, workspace(forward_memory), timed_stream()));
    }
    require(backward(gradients.args(), workspace(memory), timed_stream()));
  };
  require(prefill(forward, workspace(forward_memory), timed_stream()));
  call();
  {
    const Gradients<Config> portable(args);
    require(backward(portable.args(), Cuda{timed_stream().stream(), CudaKernels::portable}));
    require(cudaStreamSynchronize(timed_stream().stream()), "backward");
    if (!accept(state, "difference", difference(gradients.all(), portable.all()), 3 * error_bound<E>)) {
      return;
    }
  }
  const auto tokens = static_cast<double>(rows);
  const auto encoder = static_cast<double>(args.key_encoder.batch * args.key_encoder.tokens * args.key_encoder.heads);
  constexpr int d = Config::FeatureMap::input_dim;
  constexpr int dv = Config::value_dim;
  Work work;
  work.bytes = tokens * (sizeof(E) * (4 * d + 4 * dv) + sizeof(float)) + encoder * sizeof(E) * 2 * (d + dv);
  if (with_forward) {
    work.bytes += tokens * (sizeof(E) * 2 * (d + dv) + sizeof(float)) + encoder * sizeof(E) * (d + dv);
  }
  work.tokens = static_cast<double>(output.batch * output.tokens);
  if (problem_case.graph) {
    const CapturedGraph graph(call);
    time_calls(state, work, [&] { graph.replay(); });
  } else {
    time_calls(state, work, call);
  }
  state.counters["workspace_bytes"] = static_cast<double>(memory.size());
  // What a step holds beside its inputs: output, denominators and gradients, and its workspace.
  const double gradient_numbers = (tokens + encoder) * (d + dv) + tokens * d;
  state.counters["step_bytes"] = tokens * (sizeof(E) * dv + sizeof(float)) + gradient_numbers * sizeof(E) +
                                 static_cast<double>(std::max(forward_memory.size(), memory.size()));
}

template <class Config>
void add(const std::string& name, const std::vector<PrefillCase>& cases) {
  for (const PrefillCase& problem_case : cases) {
    for (const bool with_forward : {false, true}) {
      const std::string operation = with_forward ? "forward_backward/" : "backward/";
      benchmark::RegisterBenchmark((operation + name + problem_case.name()).c_str(),
                                   [problem_case, with_forward](benchmark::State& state) {
                                     backward_linear<Config>(state, problem_case, with_forward);
                                   })
          ->UseManualTime()
          ->Unit(benchmark::kMicrosecond)
          ->Iterations(21);
    }
  }
}

using Prefix = PrefixLinearAttention<BFloat16, 16, 64>;
using Causal = BasedLinearAttention<BFloat16, 16, 64>;

[[maybe_unused]] const bool registered = [] {
  add<Prefix>("prefix/bfloat16/dv64", {{.batch = 16, .tokens = 8192},
                                       {.batch = 16, .tokens = 8192, .layout = Layout::token_major},
                                       {.batch = 16, .tokens = 8150},
                                       {.batch = 16, .tokens = 32768},
                                       {.batch = 16, .tokens = 2048},
                                       {.batch = 1, .tokens = 2048},
                                       {.batch = 1, .tokens = 8192},
                                       {.batch = 1, .tokens = 32768},
                                       {.batch = 1, .tokens = 131072},
                                       {.batch = 1, .tokens = 32768, .graph = true},
                                       {.batch = 8, .tokens = 2048}});
  add<Causal>("causal/bfloat16/dv64", {{.batch = 16, .tokens = 8192}});
  add<PrefixLinearAttention<BFloat16, 16, 112>>("prefix/bfloat16/dv112", {{.batch = 16, .tokens = 8192}});
  add<PrefixLinearAttention<BFloat16, 16, 128>>("prefix/bfloat16/dv128", {{.batch = 16, .tokens = 8192}});
  add<PrefixLinearAttention<Half, 16, 64>>("prefix/half/dv64", {{.batch = 16, .tokens = 8192}});
  return true;
}();

}  // namespace
}  // namespace jrt::bench
