// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/decode.hpp>
#include <jrt/mixer/linear_attention.hpp>
#include <vector>

#include "cuda/check.cuh"

/// A step beside its formula in double, for samples of sequences and heads.
namespace jrt::bench {

/// What a step reads: `before` are the states, sequence b in slot b. All heads are alike.
template <class Config>
struct StepInputs {
  TensorView<const typename Config::Element> query{};
  TensorView<const typename Config::Element> key{};
  TensorView<const typename Config::Element> value{};
  StatePoolView<StateFormatOf<Config>> before{};
};

struct StepSample {
  std::int64_t sequence = 0;
  std::int64_t head = 0;
};

/// One block for each sample, a thread for each column: the outputs of all tokens, then S after them.
template <class Config>
__global__ void __launch_bounds__(Config::value_dim)
    expected_step(const StepInputs<Config> inputs, const StepSample* samples, double* outputs, double* states) {
  using Format = StateFormatOf<Config>;
  using Map = typename Config::FeatureMap;
  constexpr int d = Map::input_dim;
  constexpr int dv = Config::value_dim;
  const StepSample sample = samples[blockIdx.x];
  const int column = static_cast<int>(threadIdx.x);
  const auto tokens = static_cast<int>(inputs.query.tokens);
  const auto* const state = inputs.before.head(sample.sequence, sample.head);
  const auto* const normaliser = state + Format::normaliser_offset;
  const auto widened = [&](const TensorView<const typename Config::Element>& view, int token, double* x) {
    for (int i = 0; i < d; ++i) {
      x[i] = convert<double>(view.row(sample.sequence, token, sample.head)[i]);
    }
  };
  const auto value = [&](int token) {
    return convert<double>(inputs.value.row(sample.sequence, token, sample.head)[column]);
  };
  double query[d];
  double key[d];
  for (int token = 0; token < tokens; ++token) {
    widened(inputs.query, token, query);
    double numerator = 0;
    double denominator = 0;
    for (int r = 0; r < Format::rows; ++r) {
      const double feature = Map::query_feature(query, r);
      numerator += feature * convert<double>(state[r * dv + column]);
      denominator += feature * convert<double>(normaliser[r]);
    }
    for (int seen = 0; seen <= token; ++seen) {
      widened(inputs.key, seen, key);
      double dot = 0;
      for (int i = 0; i < d; ++i) {
        dot += query[i] * key[i];
      }
      const double s = dot / sqrt(static_cast<double>(d));
      const double weight = 1 + s + s * s / 2;
      numerator += weight * value(seen);
      denominator += weight;
    }
    outputs[(static_cast<std::int64_t>(blockIdx.x) * tokens + token) * dv + column] = numerator / denominator;
  }
  for (int r = 0; r < Format::rows; ++r) {
    double sum = convert<double>(state[r * dv + column]);
    for (int token = 0; token < tokens; ++token) {
      widened(inputs.key, token, key);
      sum += Map::key_feature(key, r) * value(token);
    }
    states[(static_cast<std::int64_t>(blockIdx.x) * Format::rows + r) * dv + column] = sum;
  }
}

struct StepErrors {
  double output = 0;
  double state = 0;  ///< of S
};

/// Errors of what a step wrote to `output` and, unless it is empty, `after`.
template <class Config>
StepErrors step_errors(const StepInputs<Config>& inputs, const TensorView<typename Config::Element>& output,
                       const StatePoolView<StateFormatOf<Config>>& after) {
  using Format = StateFormatOf<Config>;
  constexpr std::int64_t dv = Config::value_dim;
  constexpr std::int64_t state_numbers = Format::rows * dv;
  std::vector<StepSample> samples;
  for (std::int64_t i = 0; i < 24; ++i) {
    samples.push_back({(inputs.query.batch - 1) * i / 23, (i * 5) % inputs.query.heads});
  }
  const auto count = static_cast<std::int64_t>(samples.size());
  const std::int64_t tokens = inputs.query.tokens;
  const DeviceArray<StepSample> device_samples(samples);
  const DeviceArray<double> outputs(count * tokens * dv);
  const DeviceArray<double> states(count * state_numbers);
  expected_step<<<static_cast<unsigned>(count), static_cast<unsigned>(dv)>>>(inputs, device_samples.data(), outputs.data(),
                                                                             states.data());
  require(cudaGetLastError(), "reference of a step");
  const auto add = [](RelativeError& error, const auto* actual, const double* expected, std::int64_t numbers) {
    const auto written = numbers_at(actual, numbers);
    const auto formula = numbers_at(expected, numbers);
    for (std::size_t i = 0; i < written.size(); ++i) {
      error.add(written[i], formula[i]);
    }
  };
  RelativeError output_error;
  RelativeError state_error;
  for (std::int64_t i = 0; i < count; ++i) {
    const StepSample& sample = samples[static_cast<std::size_t>(i)];
    for (std::int64_t token = 0; token < tokens; ++token) {
      add(output_error, output.row(sample.sequence, token, sample.head), outputs.data() + (i * tokens + token) * dv, dv);
    }
    if (!after.empty()) {
      add(state_error, after.head(sample.sequence, sample.head), states.data() + i * state_numbers, state_numbers);
    }
  }
  return {output_error.value(), after.empty() ? 0 : state_error.value()};
}

}  // namespace jrt::bench
