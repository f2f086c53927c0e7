// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <jrt/cuda.cuh>
#include <jrt/policy/taylor.hpp>
#include <jrt/tensor_view.hpp>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/timing.cuh"

/// What a timed call computes, beside sums in double that are formed straight from the stored inputs by the plainest
/// kernel: no features but in the rows of a state, no chunks, no segments. Only samples, for every key that a sample sees
/// is read.
namespace jrt::bench {

/// The relative error, in the Frobenius norm, that the type of an output or state may bring.
template <class T>
constexpr double error_bound = std::is_same_v<T, float>  ? 2e-6
                               : std::is_same_v<T, Half> ? 1e-3
                                                         : 5e-3;

/// Where the tokens of one sequence lie in the views.
struct SequenceExtent {
  std::int64_t row = 0;
  std::int64_t first = 0;
  std::int64_t tokens = 0;
  std::int64_t encoder_first = 0;
  std::int64_t prefix = 0;
};

/// What a Taylor attention reads.
template <class E>
struct AttentionInputs {
  TensorView<const E> query{};
  TensorView<const E> key{};
  TensorView<const E> value{};
  TensorView<const E> key_encoder{};
  TensorView<const E> value_encoder{};
  bool reads_future = false;
  int runs_before = 0;  ///< of the same tokens, whose final state is the initial one
};

/// A row of the output or of the final state.
struct Sample {
  static constexpr std::int64_t after_all_tokens = -1;

  SequenceExtent sequence{};
  std::int64_t token = after_all_tokens;  ///< of the output; with `after_all_tokens` this is a row of the final state
  std::int64_t head = 0;                  ///< of the query or of the state
  std::int64_t key_head = 0;
  int row_index = 0;   ///< of the state
  TaylorRow row = {};  ///< what it holds
};

/// Σ_j w_j v_j (dv numbers) and Σ_j w_j over the keys that a sample sees, for each sample; w_j = 1 + s + s²/2 with
/// s = q·k_j/√d, or the key's feature in that row of the state.
template <class E>
std::vector<double> weighted_sums(const AttentionInputs<E>& inputs, const std::vector<Sample>& samples);

/// `count` numbers in device memory.
template <class T>
std::vector<double> numbers_at(const T* data, std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  require(cudaMemcpy(values.data(), data, values.size() * sizeof(T), cudaMemcpyDeviceToHost), "copy to the host");
  std::vector<double> numbers;
  for (const T value : values) {
    numbers.push_back(convert<double>(value));
  }
  return numbers;
}

/// ‖actual − expected‖ / ‖expected‖ of all numbers added; not a number if one of them is none.
class RelativeError {
 public:
  void add(double actual, double expected) {
    difference_ += (actual - expected) * (actual - expected);
    norm_ += expected * expected;
  }
  [[nodiscard]] double value() const { return std::sqrt(difference_ / norm_); }

 private:
  double difference_ = 0;
  double norm_ = 0;
};

/// Reports an error as a counter, and fails the benchmark if it exceeds the bound (as what is not a number does).
bool accept(benchmark::State& state, const std::string& counter, double error, double bound);

}  // namespace jrt::bench
