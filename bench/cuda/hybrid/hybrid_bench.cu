// SPDX-License-Identifier: Apache-2.0
// Linear and window attention in one mixer: prefill, its backward pass and one decode step, 16 heads, bfloat16, d = 16, dv
// = 64, L = 128, causal, cold caches. Names are
//
//     both/prefill/B:<sequences>/N:<tokens>
//     both/backward/B:<sequences>/N:<tokens>     all gradients
//     both/decode/B:<sequences>
//
// The bytes that must move are queries, keys, values and outputs once, and of a backward pass the logarithms and all
// gradients, too; of a decode step the states, read and written, and
// the rings, read.
#include <algorithm>
#include <cmath>
#include <jrt/backward.hpp>
#include <jrt/mixer/hybrid_attention.hpp>
#include <string>

#include "cuda/check.cuh"
#include "cuda/timing.cuh"

namespace jrt::bench {
namespace {

constexpr std::int64_t heads = 16;
constexpr int d = 16;
constexpr int dv = 64;

using E = BFloat16;
using Linear = BasedLinearAttention<E, d, dv>;
using Config = HybridAttention<Linear, WindowBeside<Linear, 128>>;
using Format = StateFormatOf<Config>;

/// Tensors of some sequences, (B, H, T, ·).
class BothProblem {
 public:
  BothProblem(std::int64_t batch, std::int64_t tokens)
      : shape_{batch, tokens, heads, d},
        value_shape_{batch, tokens, heads, dv},
        query_(random_array<E>(batch * tokens * heads * d, 1)),
        key_(random_array<E>(batch * tokens * heads * d, 2)),
        value_(random_array<E>(batch * tokens * heads * dv, 3)),
        output_(batch * tokens * heads * dv) {
    output_.poison();
  }

  template <class Args>
  [[nodiscard]] Args args() const {
    Args args;
    args.query = view_bhtd<const E>(query_.data(), shape_);
    args.key = view_bhtd<const E>(key_.data(), shape_);
    args.value = view_bhtd<const E>(value_.data(), value_shape_);
    args.output = view_bhtd(output_.data(), value_shape_);
    return args;
  }

  /// Error of the outputs in a sample of tokens, none of them far from the start: the formula reads all keys.
  [[nodiscard]] double error() const {
    const auto args = this->args<PrefillArgs<Config>>();
    RelativeError error;
    for (std::int64_t i = 0; i < 6; ++i) {
      const std::int64_t b = i * 7 % shape_.batch;
      const std::int64_t h = i * 5 % heads;
      const std::int64_t t = std::min<std::int64_t>(shape_.tokens - 1, 40 + 170 * i);
      const auto query = numbers_at(args.query.row(b, t, h), d);
      std::vector<double> sums(dv, 0.0);
      double total = 0;
      for (std::int64_t j = 0; j <= t; ++j) {
        const auto key = numbers_at(args.key.row(b, j, h), d);
        double score = 0;
        for (int c = 0; c < d; ++c) {
          score += query[c] * key[c] / std::sqrt(static_cast<double>(d));
        }
        const double weight = t - j <= 128 ? std::exp(score) : 1 + score + score * score / 2;
        const auto value = numbers_at(args.value.row(b, j, h), dv);
        total += weight;
        for (int c = 0; c < dv; ++c) {
          sums[c] += weight * value[c];
        }
      }
      const auto actual = numbers_at(args.output.row(b, t, h), dv);
      for (int c = 0; c < dv; ++c) {
        error.add(actual[c], sums[c] / total);
      }
    }
    return error.value();
  }

 private:
  TensorShape shape_;
  TensorShape value_shape_;
  DeviceArray<E> query_;
  DeviceArray<E> key_;
  DeviceArray<E> value_;
  DeviceArray<E> output_;
};

void prefill_both(benchmark::State& state, std::int64_t batch, std::int64_t tokens) {
  const BothProblem problem(batch, tokens);
  const auto args = problem.args<PrefillArgs<Config>>();
  const auto bytes = static_cast<std::int64_t>(prefill_workspace_bytes(args, timed_stream()));
  const DeviceArray<std::byte> memory(bytes);
  const Workspace workspace{memory.data(), static_cast<std::size_t>(bytes)};
  require(prefill(args, workspace, timed_stream()));
  require(cudaStreamSynchronize(timed_stream().stream()), "prefill");
  if (!accept(state, "error", problem.error(), error_bound<E>)) {
    return;
  }
  const auto all = static_cast<double>(batch * tokens * heads);
  const Work work{.bytes = sizeof(E) * 2.0 * (d + dv) * all, .tokens = static_cast<double>(batch * tokens)};
  time_calls(state, work, [&] { require(prefill(args, workspace, timed_stream())); });
}

void backward_both(benchmark::State& state, std::int64_t batch, std::int64_t tokens) {
  const BothProblem problem(batch, tokens);
  const std::int64_t rows = batch * tokens * heads;
  const TensorShape narrow{batch, tokens, heads, d};
  const TensorShape wide{batch, tokens, heads, dv};
  const DeviceArray<float> log_sum_exp(rows);
  const auto output_gradient = random_array<E>(rows * dv, 99);
  const DeviceArray<E> gradients(rows * (2 * d + dv));
  gradients.poison();
  auto forward = problem.args<PrefillArgs<Config>>();
  forward.log_sum_exp = view_bhtd(log_sum_exp.data(), {batch, tokens, heads, 1});
  require(prefill(forward, timed_stream()));
  BackwardArgs<Config> args;
  args.query = forward.query;
  args.key = forward.key;
  args.value = forward.value;
  args.output = forward.output;
  args.log_sum_exp = forward.log_sum_exp;
  args.output_gradient = view_bhtd<const E>(output_gradient.data(), wide);
  args.query_gradient = view_bhtd(gradients.data(), narrow);
  args.key_gradient = view_bhtd(gradients.data() + rows * d, narrow);
  args.value_gradient = view_bhtd(gradients.data() + 2 * rows * d, wide);
  const auto bytes = static_cast<std::int64_t>(backward_workspace_bytes(args, timed_stream()));
  const DeviceArray<std::byte> memory(bytes);
  const Workspace workspace{memory.data(), static_cast<std::size_t>(bytes)};
  require(backward(args, workspace, timed_stream()));
  require(cudaStreamSynchronize(timed_stream().stream()), "backward");
  // The last value of a sequence is seen by the last query alone: its gradient is that query's weight times dy.
  RelativeError error;
  for (std::int64_t h = 0; h < heads; ++h) {
    const auto query = numbers_at(args.query.row(batch - 1, tokens - 1, h), d);
    const auto key = numbers_at(args.key.row(batch - 1, tokens - 1, h), d);
    double score = 0;
    for (int c = 0; c < d; ++c) {
      score += query[c] * key[c] / std::sqrt(static_cast<double>(d));
    }
    const double log_sum = numbers_at(args.log_sum_exp.row(batch - 1, tokens - 1, h), 1)[0];
    const auto dy = numbers_at(args.output_gradient.row(batch - 1, tokens - 1, h), dv);
    const auto actual = numbers_at(args.value_gradient.row(batch - 1, tokens - 1, h), dv);
    for (int c = 0; c < dv; ++c) {
      error.add(actual[c], std::exp(score - log_sum) * dy[c]);
    }
  }
  if (!accept(state, "error", error.value(), error_bound<E>)) {
    return;
  }
  const auto all = static_cast<double>(rows);
  const Work work{.bytes = (sizeof(E) * 4.0 * (d + dv) + sizeof(float)) * all,
                  .tokens = static_cast<double>(batch * tokens)};
  time_calls(state, work, [&] { require(backward(args, workspace, timed_stream())); });
}

/// Steps of a batch of its own each, after 200 tokens, so that states come from memory.
void decode_both(benchmark::State& state, std::int64_t batch) {
  constexpr std::int64_t steps = 8;
  const BothProblem before(steps * batch, 200);
  const DeviceArray<std::uint64_t> states(steps * batch * heads * Format::head_elements);
  auto prompt = before.args<PrefillArgs<Config>>();
  prompt.final_state = {view_pool<Format>(states.data(), steps * batch, heads)};
  require(prefill(prompt, timed_stream()));
  require(cudaStreamSynchronize(timed_stream().stream()), "prefill");
  if (!accept(state, "error", before.error(), error_bound<E>)) {
    return;
  }
  const BothProblem problem(batch, 1);
  auto args = problem.args<DecodeArgs<Config>>();
  args.source = {view_pool<Format>(states.data(), batch, heads)};
  const auto bytes = static_cast<std::int64_t>(decode_workspace_bytes(args, timed_stream()));
  const DeviceArray<std::byte> memory(bytes);
  const CapturedGraph graph([&] {
    for (std::int64_t i = 0; i < steps; ++i) {
      args.source.pool = view_pool<Format>(states.data() + i * batch * heads * Format::head_elements, batch, heads);
      require(decode_step(args, {memory.data(), static_cast<std::size_t>(bytes)}, timed_stream()));
    }
  });
  const auto linear = static_cast<double>(Format::LinearFormat::slot_bytes(1));
  const auto ring = static_cast<double>(Format::WindowFormat::slot_bytes(1));
  const Work work{.bytes = (2 * linear + ring) * static_cast<double>(heads * batch), .tokens = static_cast<double>(batch)};
  time_calls(
      state, work, [&] { graph.replay(); }, steps);
}

const bool registered = [] {
  const auto add = [](const std::string& name, const auto& run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(15);
  };
  add("both/prefill/B:16/N:2048", [](benchmark::State& state) { prefill_both(state, 16, 2048); });
  add("both/prefill/B:16/N:32768", [](benchmark::State& state) { prefill_both(state, 16, 32768); });
  add("both/backward/B:16/N:8192", [](benchmark::State& state) { backward_both(state, 16, 8192); });
  add("both/decode/B:256", [](benchmark::State& state) { decode_both(state, 256); });
  return true;
}();

}  // namespace
}  // namespace jrt::bench
