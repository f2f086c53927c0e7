// SPDX-License-Identifier: Apache-2.0
// Sliding-window attention: prefill, its backward pass and one decode step, 16 heads, bfloat16, cold caches. Names are
//
//     window/d<d>/L<keys to the left>[/rotary]/B:<sequences>/N:<tokens>
//     window_backward/…                   all three gradients
//     window_forward_backward/…           the prefill that stores what they need, and they
//     window_decode/d<d>/L<keys to the left>/B:<sequences>
//
// The bytes that must move are queries, keys, values and outputs once; of a backward pass these, their gradients and
// log_sum_exp once; of a decode step the caches, once.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <jrt/backward.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/check.cuh"
#include "cuda/timing.cuh"

namespace jrt::bench {
namespace {

constexpr std::int64_t heads = 16;

template <int d>
struct Turned : SlidingWindowAttention<BFloat16, d, 128> {
  using Rotary = RotaryHalves<d>;
};

/// Rotates a query or key by its position, or with `sign` = −1 back.
template <class Config>
void rotate(double* numbers, std::int64_t position, double sign = 1) {
  if constexpr (Config::Rotary::rotates) {
    constexpr int half = Config::head_dim / 2;
    for (int i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) * std::pow(1e4, -2.0 * i / Config::head_dim);
      const double first = numbers[i];
      const double second = numbers[i + half];
      numbers[i] = first * std::cos(angle) - sign * second * std::sin(angle);
      numbers[i + half] = sign * first * std::sin(angle) + second * std::cos(angle);
    }
  }
}
/// Row as numbers, rotated by its position.
template <class Config>
std::vector<double> rotated_row(const typename Config::Element* row, std::int64_t position) {
  std::vector<double> numbers = numbers_at(row, Config::head_dim);
  rotate<Config>(numbers.data(), position);
  return numbers;
}

/// Adds one output to the error: `key(j)` and `value(j)` are the rows of the keys that it sees, the last its own.
template <class Config, class Keys, class Values>
void compare(RelativeError& error, const std::vector<double>& query, const Keys& key, const Values& value,
             std::int64_t count, const typename Config::Element* output) {
  std::vector<double> sums(Config::value_dim, 0.0);
  double total = 0;
  for (std::int64_t j = 0; j < count; ++j) {
    const std::vector<double> numbers = key(j);
    double score = 0;
    for (int c = 0; c < Config::head_dim; ++c) {
      score += query[c] * numbers[c];
    }
    const double weight = std::exp(score / std::sqrt(static_cast<double>(Config::head_dim)));
    const std::vector<double> row = numbers_at(value(j), Config::value_dim);
    total += weight;
    for (int c = 0; c < Config::value_dim; ++c) {
      sums[c] += weight * row[c];
    }
  }
  const std::vector<double> actual = numbers_at(output, Config::value_dim);
  for (int c = 0; c < Config::value_dim; ++c) {
    error.add(actual[c], sums[c] / total);
  }
}

template <class Config>
void prefill_window(benchmark::State& state, std::int64_t batch, std::int64_t tokens) {
  using E = typename Config::Element;
  constexpr int d = Config::head_dim;
  const std::int64_t count = batch * tokens * heads * d;
  const auto query = random_array<E>(count, 1);
  const auto key = random_array<E>(count, 2);
  const auto value = random_array<E>(count, 3);
  const DeviceArray<E> output(count);
  output.poison();
  const TensorShape shape{batch, tokens, heads, d};
  PrefillArgs<Config> args;
  args.query = view_bhtd<const E>(query.data(), shape);
  args.key = view_bhtd<const E>(key.data(), shape);
  args.value = view_bhtd<const E>(value.data(), shape);
  args.output = view_bhtd(output.data(), shape);
  require(prefill(args, Workspace{}, timed_stream()));
  require(cudaStreamSynchronize(timed_stream().stream()), "prefill");
  RelativeError error;
  for (std::int64_t i = 0; i < 12; ++i) {
    const std::int64_t b = i * 7 % batch;
    const std::int64_t h = i * 5 % heads;
    const std::int64_t t = (tokens - 1) * (i + 1) / 12;
    const std::int64_t first = std::max<std::int64_t>(0, t - Config::left_window);
    compare<Config>(
        error, rotated_row<Config>(args.query.row(b, t, h), t),
        [&](std::int64_t j) { return rotated_row<Config>(args.key.row(b, first + j, h), first + j); },
        [&](std::int64_t j) { return args.value.row(b, first + j, h); }, t - first + 1, args.output.row(b, t, h));
  }
  if (!accept(state, "error", error.value(), error_bound<E>)) {
    return;
  }
  const auto visible = static_cast<double>(Config::left_window + 1);
  const Work work{.bytes = 4.0 * sizeof(E) * static_cast<double>(count),
                  .operations = 4.0 * visible * static_cast<double>(count),
                  .tokens = static_cast<double>(batch * tokens)};
  time_calls(state, work, [&] { require(prefill(args, Workspace{}, timed_stream())); });
}

/// Adds the gradients at one token of one head to the errors, {dq, dk, dv}. Rows of neighbouring tokens are neighbours.
template <class Config>
void compare_gradients(RelativeError (&errors)[3], const BackwardArgs<Config>& args, std::int64_t b, std::int64_t h,
                       std::int64_t t) {
  constexpr int d = Config::head_dim;
  constexpr int dv = Config::value_dim;
  const std::int64_t first = std::max<std::int64_t>(0, t - Config::left_window);
  const std::int64_t end = std::min(args.query.tokens, t + Config::left_window + 1);
  const auto rows = [&](const auto& view) { return numbers_at(view.row(b, first, h), (end - first) * view.dim); };
  const std::vector<double> values = rows(args.value);
  const std::vector<double> output_gradients = rows(args.output_gradient);
  std::vector<double> queries = rows(args.query);
  std::vector<double> keys = rows(args.key);
  for (std::int64_t i = first; i < end; ++i) {
    rotate<Config>(queries.data() + (i - first) * d, i);
    rotate<Config>(keys.data() + (i - first) * d, i);
  }
  const auto dot = [](const double* one, const double* other, int count) {
    return std::inner_product(one, one + count, other, 0.0);
  };
  const auto add = [](std::vector<double>& to, double factor, const double* from) {
    for (std::size_t c = 0; c < to.size(); ++c) {
      to[c] += factor * from[c];
    }
  };
  std::vector<double> expected[3] = {std::vector<double>(d), std::vector<double>(d), std::vector<double>(dv)};
  for (std::int64_t i = t; i < end; ++i) {
    const double* const query = queries.data() + (i - first) * d;
    const double* const output_gradient = output_gradients.data() + (i - first) * dv;
    const std::int64_t from = std::max<std::int64_t>(0, i - Config::left_window);
    std::vector<double> weights;
    std::vector<double> weight_gradients;
    double total = 0;
    double mean = 0;
    for (std::int64_t j = from; j <= i; ++j) {
      weights.push_back(std::exp(args.scale * dot(query, keys.data() + (j - first) * d, d)));
      weight_gradients.push_back(dot(output_gradient, values.data() + (j - first) * dv, dv));
      total += weights.back();
      mean += weights.back() * weight_gradients.back();
    }
    const auto score_gradient = [&](std::int64_t j) {
      return args.scale * weights[j - from] / total * (weight_gradients[j - from] - mean / total);
    };
    for (std::int64_t j = from; i == t && j <= i; ++j) {
      add(expected[0], score_gradient(j), keys.data() + (j - first) * d);
    }
    add(expected[1], score_gradient(t), query);
    add(expected[2], weights[t - from] / total, output_gradient);
  }
  const std::vector<double> actual[3] = {numbers_at(args.query_gradient.row(b, t, h), d),
                                         numbers_at(args.key_gradient.row(b, t, h), d),
                                         numbers_at(args.value_gradient.row(b, t, h), dv)};
  rotate<Config>(expected[0].data(), t, -1);
  rotate<Config>(expected[1].data(), t, -1);
  for (int i = 0; i < 3; ++i) {
    for (std::size_t c = 0; c < expected[i].size(); ++c) {
      errors[i].add(actual[i][c], expected[i][c]);
    }
  }
}

/// Times the backward pass, `with_forward` after the prefill.
template <class Config>
void backward_window(benchmark::State& state, std::int64_t batch, std::int64_t tokens, bool with_forward) {
  using E = typename Config::Element;
  const TensorShape shape{batch, tokens, heads, Config::head_dim};
  const std::int64_t rows = batch * tokens * heads;
  const std::int64_t count = rows * Config::head_dim;
  const auto query = random_array<E>(count, 1);
  const auto key = random_array<E>(count, 2);
  const auto value = random_array<E>(count, 3);
  const auto output_gradient = random_array<E>(count, 4);
  const DeviceArray<E> output(count);
  const DeviceArray<E> query_gradient(count);
  const DeviceArray<E> key_gradient(count);
  const DeviceArray<E> value_gradient(count);
  const DeviceArray<float> log_sum_exp(rows);
  for (const auto* array : {&output, &query_gradient, &key_gradient, &value_gradient}) {
    array->poison();
  }
  log_sum_exp.poison();
  PrefillArgs<Config> forward;
  forward.query = view_bhtd<const E>(query.data(), shape);
  forward.key = view_bhtd<const E>(key.data(), shape);
  forward.value = view_bhtd<const E>(value.data(), shape);
  forward.output = view_bhtd(output.data(), shape);
  forward.log_sum_exp = view_bhtd(log_sum_exp.data(), {batch, tokens, heads, 1});
  BackwardArgs<Config> args;
  args.query = forward.query;
  args.key = forward.key;
  args.value = forward.value;
  args.output = forward.output;
  args.log_sum_exp = forward.log_sum_exp;
  args.output_gradient = view_bhtd<const E>(output_gradient.data(), shape);
  args.query_gradient = view_bhtd(query_gradient.data(), shape);
  args.key_gradient = view_bhtd(key_gradient.data(), shape);
  args.value_gradient = view_bhtd(value_gradient.data(), shape);
  const DeviceArray<std::byte> memory(static_cast<std::int64_t>(backward_workspace_bytes(args, timed_stream())));
  const Workspace workspace{memory.data(), static_cast<std::size_t>(memory.size())};
  require(prefill(forward, Workspace{}, timed_stream()));
  require(backward(args, workspace, timed_stream()));
  require(cudaStreamSynchronize(timed_stream().stream()), "backward");
  RelativeError errors[3];
  for (std::int64_t i = 0; i < 6; ++i) {
    compare_gradients<Config>(errors, args, i * 7 % batch, i * 5 % heads, (tokens - 1) * (i + 1) / 6);
  }
  constexpr double bound = 2 * error_bound<E>;  // of gradients
  if (!accept(state, "error_dq", errors[0].value(), bound) || !accept(state, "error_dk", errors[1].value(), bound) ||
      !accept(state, "error_dv", errors[2].value(), bound)) {
    return;
  }
  const auto visible = static_cast<double>(Config::left_window + 1);
  const double products = with_forward ? 7 : 5;
  const double tensors = with_forward ? 8 + 4 : 8;
  const Work work{.bytes = tensors * sizeof(E) * static_cast<double>(count) + sizeof(float) * static_cast<double>(rows),
                  .operations = products * 2.0 * visible * static_cast<double>(count),
                  .tokens = static_cast<double>(batch * tokens)};
  time_calls(state, work, [&] {
    if (with_forward) {
      require(prefill(forward, Workspace{}, timed_stream()));
    }
    require(backward(args, workspace, timed_stream()));
  });
}

template <class Config>
void decode_window(benchmark::State& state, std::int64_t batch) {
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  constexpr int d = Config::head_dim;
  const std::int64_t steps = std::clamp<std::int64_t>(1'000'000'000 / (Format::slot_bytes(heads) * batch), 4, 100);
  const auto query = random_array<E>(batch * heads * d, 1);
  const auto key = random_array<E>(batch * heads * d, 2);
  const auto value = random_array<E>(batch * heads * d, 3);
  const DeviceArray<E> output(batch * heads * d);
  output.poison();
  const auto prompt = random_array<E>(steps * batch * 200 * heads * d, 4);
  const DeviceArray<E> caches(steps * batch * heads * Format::head_elements);
  const auto pool = [&](std::int64_t step, std::int64_t slots) {
    return view_pool<Format>(caches.data() + step * batch * heads * Format::head_elements, slots, heads);
  };
  // Full caches.
  const TensorShape shape{steps * batch, 200, heads, d};
  PrefillArgs<Config> before;
  before.query = view_bthd<const E>(prompt.data(), shape).slice_tokens(0, 160);
  before.key = view_bthd<const E>(prompt.data(), shape).slice_tokens(3, 160);
  before.value = view_bthd<const E>(prompt.data(), shape).slice_tokens(7, 160);
  const DeviceArray<E> unused(steps * batch * 160 * heads * d);
  before.output = view_bthd(unused.data(), {steps * batch, 160, heads, d});
  before.final_state = {pool(0, steps * batch)};
  require(prefill(before, Workspace{}, timed_stream()));
  DecodeArgs<Config> args;
  args.query = view_bthd<const E>(query.data(), {batch, 1, heads, d});
  args.key = view_bthd<const E>(key.data(), {batch, 1, heads, d});
  args.value = view_bthd<const E>(value.data(), {batch, 1, heads, d});
  args.output = view_bthd(output.data(), {batch, 1, heads, d});
  args.source = {pool(0, batch)};
  require(decode_step(args, Workspace{}, timed_stream()));
  require(cudaStreamSynchronize(timed_stream().stream()), "decode");
  RelativeError error;
  for (std::int64_t i = 0; i < 8; ++i) {
    const std::int64_t b = i * 31 % batch;
    const std::int64_t h = i * 5 % heads;
    const auto row = [&](const auto& view, const auto& last, std::int64_t j) {
      return j == Config::left_window ? last.row(b, 0, h) : view.row(b, 160 - Config::left_window + j, h);
    };
    compare<Config>(
        error, rotated_row<Config>(args.query.row(b, 0, h), 160),
        [&](std::int64_t j) { return rotated_row<Config>(row(before.key, args.key, j), 160 - Config::left_window + j); },
        [&](std::int64_t j) { return row(before.value, args.value, j); }, Config::left_window + 1,
        args.output.row(b, 0, h));
  }
  if (!accept(state, "error", error.value(), error_bound<E>)) {
    return;
  }
  const CapturedGraph graph([&] {
    for (std::int64_t i = 0; i < steps; ++i) {
      args.source = {pool(i, batch)};
      require(decode_step(args, Workspace{}, timed_stream()));
    }
  });
  const Work work{.bytes = 2.0 * sizeof(E) * d * Config::left_window * static_cast<double>(heads * batch),
                  .tokens = static_cast<double>(batch)};
  time_calls(
      state, work, [&] { graph.replay(); }, steps);
}

template <class Config>
void add(const std::string& name) {
  const auto add_one = [](const std::string& full_name, const auto& run) {
    benchmark::RegisterBenchmark(full_name.c_str(), run)->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(15);
  };
  const std::pair<std::int64_t, std::int64_t> shapes[] = {{16, 2048}, {16, 32768}, {1, 2048}, {1, 131072}};
  for (const auto& [batch, tokens] : shapes) {
    const std::string sizes = "/" + name + "/B:" + std::to_string(batch) + "/N:" + std::to_string(tokens);
    add_one("window" + sizes,
            [batch = batch, tokens = tokens](benchmark::State& state) { prefill_window<Config>(state, batch, tokens); });
    for (const bool with_forward : {false, true}) {
      add_one((with_forward ? "window_forward_backward" : "window_backward") + sizes,
              [batch = batch, tokens = tokens, with_forward](benchmark::State& state) {
                backward_window<Config>(state, batch, tokens, with_forward);
              });
    }
  }
  for (const std::int64_t batch : {1, 32, 256}) {
    add_one("window_decode/" + name + "/B:" + std::to_string(batch),
            [batch](benchmark::State& state) { decode_window<Config>(state, batch); });
  }
}

const bool registered = [] {
  add<SlidingWindowAttention<BFloat16, 64, 128>>("d64/L128");
  add<SlidingWindowAttention<BFloat16, 112, 128>>("d112/L128");
  add<Turned<64>>("d64/L128/rotary");
  return true;
}();

}  // namespace
}  // namespace jrt::bench
