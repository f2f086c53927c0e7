// SPDX-License-Identifier: Apache-2.0
#include "cuda/check.cuh"

#include <cstdio>

namespace jrt::bench {
namespace {

constexpr int threads = 256;
constexpr int max_inputs = 128;  // d

/// A key's feature as Taylor2 documents it.
template <class E>
__device__ double key_feature(const E* key, const TaylorRow& row, double d) {
  if (row.first < 0) {
    return 1;
  }
  const auto first = convert<double>(key[row.first]);
  return row.second < 0 ? first / sqrt(sqrt(d)) : first * convert<double>(key[row.second]) / sqrt(2 * d);
}

/// One block for each sample: the threads weigh a batch of keys, then each adds up one column of some of its values.
template <class E>
__global__ void __launch_bounds__(threads)
    add_weighted(const AttentionInputs<E> inputs, const Sample* samples, double* sums) {
  __shared__ double query[max_inputs];
  __shared__ double weights[threads];
  __shared__ double partial_sums[threads];
  const Sample sample = samples[blockIdx.x];
  const SequenceExtent sequence = sample.sequence;
  const bool of_state = sample.token == Sample::after_all_tokens;
  const int thread = static_cast<int>(threadIdx.x);
  const int d = static_cast<int>(inputs.key.dim);
  const int dv = static_cast<int>(inputs.value.dim);
  const int groups = threads / dv;
  const int group = thread / dv;
  const int column = thread % dv;
  if (!of_state && thread < d) {
    query[thread] = convert<double>(inputs.query.row(sequence.row, sequence.first + sample.token, sample.head)[thread]);
  }
  __syncthreads();
  const auto weight_of = [&](const E* key) {
    if (of_state) {
      return key_feature(key, sample.row, d);
    }
    double dot = 0;
    for (int i = 0; i < d; ++i) {
      dot += query[i] * convert<double>(key[i]);
    }
    const double s = dot / sqrt(static_cast<double>(d));
    return 1 + s + s * s / 2;
  };
  double weight_sum = 0;
  double sum = 0;
  const auto add = [&](const TensorView<const E>& key, const TensorView<const E>& value, std::int64_t first,
                       std::int64_t count, int times) {
    for (std::int64_t begin = 0; times > 0 && begin < count; begin += threads) {
      const int keys = static_cast<int>(count - begin < threads ? count - begin : threads);
      const std::int64_t token = first + begin;
      const double weight = thread < keys ? times * weight_of(key.row(sequence.row, token + thread, sample.key_head)) : 0.0;
      weight_sum += weight;
      __syncthreads();  // everyone has read the last batch's weights
      weights[thread] = weight;
      __syncthreads();
      for (int i = group; group < groups && i < keys; i += groups) {
        sum += weights[i] * convert<double>(value.row(sequence.row, token + i, sample.key_head)[column]);
      }
    }
  };
  const std::int64_t visible = of_state || inputs.reads_future ? sequence.tokens : sample.token + 1;
  add(inputs.key_encoder, inputs.value_encoder, sequence.encoder_first, sequence.prefix, 1 + inputs.runs_before);
  add(inputs.key, inputs.value, sequence.first, visible, 1);
  add(inputs.key, inputs.value, sequence.first, sequence.tokens, inputs.runs_before);

  __syncthreads();
  weights[thread] = weight_sum;
  partial_sums[thread] = sum;
  __syncthreads();
  double* const result = sums + static_cast<std::int64_t>(blockIdx.x) * (dv + 1);
  if (group == 0) {
    for (int other = 1; other < groups; ++other) {
      sum += partial_sums[other * dv + column];
    }
    result[column] = sum;
  }
  if (thread == 0) {
    for (int other = 1; other < threads; ++other) {
      weight_sum += weights[other];
    }
    result[dv] = weight_sum;
  }
}

}  // namespace

template <class E>
std::vector<double> weighted_sums(const AttentionInputs<E>& inputs, const std::vector<Sample>& samples) {
  if (inputs.key.dim > max_inputs || inputs.value.dim > threads) {
    std::fprintf(stderr, "the reference takes at most d = %d and dv = %d\n", max_inputs, threads);
    std::exit(1);
  }
  const DeviceArray<Sample> device_samples(samples);
  const DeviceArray<double> sums(static_cast<std::int64_t>(samples.size()) * (inputs.value.dim + 1));
  add_weighted<<<static_cast<unsigned>(samples.size()), threads>>>(inputs, device_samples.data(), sums.data());
  require(cudaGetLastError(), "reference");
  return numbers_at(sums.data(), sums.size());
}
template std::vector<double> weighted_sums(const AttentionInputs<float>&, const std::vector<Sample>&);
template std::vector<double> weighted_sums(const AttentionInputs<Half>&, const std::vector<Sample>&);
template std::vector<double> weighted_sums(const AttentionInputs<BFloat16>&, const std::vector<Sample>&);

bool accept(benchmark::State& state, const std::string& counter, double error, double bound) {
  state.counters[counter] = error;
  if (error <= bound) {
    return true;
  }
  char reason[128];
  std::snprintf(reason, sizeof reason, "wrong result: %s = %.3g, but at most %.3g is allowed", counter.c_str(), error,
                bound);
  fail(state, reason);
  return false;
}

}  // namespace jrt::bench
