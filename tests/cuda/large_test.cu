// SPDX-License-Identifier: Apache-2.0
// More than a million tokens in one call, in tensors of more than 2^31 elements.
#include <jrt/cuda.cuh>

#include <doctest/doctest.h>

#include <jrt/backward.hpp>
#include <jrt/prefill.hpp>
#include <string>
#include <vector>

#include "support/configs.hpp"
#include "support/cuda_backend.cuh"
#include "support/tensor.hpp"

namespace jrt::test {
namespace {

using Config = SplitByLength<Prefix<BFloat16, 16, 64>, 16384>;
using Format = StateFormatOf<Config>;

/// The same numbers on host and device: uniform in [-1, 1), of variance 1/3.
__host__ __device__ float number_at(std::uint64_t index, std::uint64_t tensor) {
  std::uint64_t bits = (index + tensor * 0x1000000000) * 0x9e3779b97f4a7c15ull;
  bits ^= bits >> 29;
  bits *= 0xbf58476d1ce4e5b9ull;
  bits ^= bits >> 32;
  return static_cast<float>(static_cast<std::uint32_t>(bits) >> 8) * 0x1p-23F - 1.0F;
}

/// Values rise from 0 to 4 over the sequence, so that a segment left out would show in every later output.
__host__ __device__ float value_at(std::int64_t index, std::int64_t count) {
  return number_at(static_cast<std::uint64_t>(index), 2) +
         static_cast<float>(4.0 * static_cast<double>(index) / static_cast<double>(count));
}

__global__ void fill(BFloat16* values, std::int64_t count, std::uint64_t tensor) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; i < count; i += stride) {
    values[i] = BFloat16(tensor == 2 ? value_at(i, count) : number_at(static_cast<std::uint64_t>(i), tensor));
  }
}

class Memory {
 public:
  explicit Memory(std::int64_t elements) {
    if (cudaMalloc(&data_, static_cast<std::size_t>(elements) * sizeof(BFloat16)) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      data_ = nullptr;
    }
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { require_cuda(cudaFree(data_), "cudaFree"); }
  [[nodiscard]] BFloat16* data() const { return static_cast<BFloat16*>(data_); }

 private:
  void* data_ = nullptr;
};

constexpr std::int64_t tokens = (1 << 20) + 77;
constexpr std::int64_t prefix = tokens / 2;
constexpr std::int64_t heads = 33;
static_assert(tokens * heads * 64 > std::int64_t{1} << 31);
constexpr TensorShape narrow{1, tokens, heads, 16};
constexpr TensorShape wide{1, tokens, heads, 64};

/// Inputs and output of a prefill, and its final state.
struct Prefilled {
  Memory query{tokens * heads * 16}, key{tokens * heads * 16}, value{tokens * heads * 64}, output{tokens * heads * 64};
  DeviceArray<float> denominators{std::vector<float>(static_cast<std::size_t>(tokens * heads))};
  DeviceArray<float> states{std::vector<float>(static_cast<std::size_t>(heads * Format::head_elements))};
  PrefillArgs<Config> args;

  /// False if the device has too little memory.
  bool run() {
    if (query.data() == nullptr || key.data() == nullptr || value.data() == nullptr || output.data() == nullptr) {
      return false;
    }
    fill<<<1024, 256>>>(query.data(), tokens * heads * 16, 0);
    fill<<<1024, 256>>>(key.data(), tokens * heads * 16, 1);
    fill<<<1024, 256>>>(value.data(), tokens * heads * 64, 2);
    require_cuda(cudaMemset(output.data(), 0xff, sizeof(BFloat16) * tokens * heads * 64), "poison");
    args.query = view_bthd<const BFloat16>(query.data(), narrow);
    args.key = view_bthd<const BFloat16>(key.data(), narrow);
    args.value = view_bthd<const BFloat16>(value.data(), wide);
    args.key_encoder = args.key.slice_tokens(0, prefix);
    args.value_encoder = args.value.slice_tokens(0, prefix);
    args.output = view_bthd(output.data(), wide);
    args.denominators = view_bthd(denominators.data(), {1, tokens, heads, 1});
    args.final_state = {view_pool<Format>(states.data(), 1, heads)};
    const Status status = prefill(args, Cuda{});
    INFO(std::string(status.message()));
    REQUIRE(status.ok());
    return true;
  }
};

/// Number c of the last head's row of token t, as the tensors have it.
double number(std::int64_t t, int dim, std::uint64_t tensor, int c) {
  const std::int64_t index = (t * heads + heads - 1) * dim + c;
  const float number =
      tensor == 2 ? value_at(index, tokens * heads * 64) : number_at(static_cast<std::uint64_t>(index), tensor);
  return static_cast<double>(static_cast<float>(BFloat16(number)));
}
/// q_i·k_j/√d of the last head.
double score(std::int64_t i, std::int64_t j) {
  double dot = 0;
  for (int c = 0; c < 16; ++c) {
    dot += number(i, 16, 0, c) * number(j, 16, 1, c);
  }
  return dot / 4;
}
double weight_of(double score) {
  return 1 + score + score * score / 2;
}

/// The last head's row of token t in a tensor of the device.
std::vector<double> row_at(const Memory& memory, std::int64_t t, int dim) {
  std::vector<BFloat16> row(static_cast<std::size_t>(dim));
  require_cuda(cudaMemcpy(row.data(), memory.data() + (t * heads + heads - 1) * dim, row.size() * sizeof(BFloat16),
                          cudaMemcpyDeviceToHost),
               "copy");
  std::vector<double> numbers;
  for (const BFloat16 number : row) {
    numbers.push_back(static_cast<double>(static_cast<float>(number)));
  }
  return numbers;
}

/// The output of the last token of the last head, in double, over all pairs.
std::vector<double> last_output_by_formula() {
  std::vector<double> sums(64);
  double weights = 0;
  for (std::int64_t j = 0; j < tokens; ++j) {
    const double weight = weight_of(score(tokens - 1, j)) * (j < prefix ? 2 : 1);  // a prefix token is read twice
    weights += weight;
    for (int c = 0; c < 64; ++c) {
      sums[static_cast<std::size_t>(c)] += weight * number(j, 64, 2, c);
    }
  }
  for (double& sum : sums) {
    sum /= weights;
  }
  return sums;
}

TEST_CASE("a million tokens in one call") {
  Prefilled call;
  if (!call.run()) {
    MESSAGE("skipped: the device has too little memory");
    return;
  }
  const double error = relative_error(row_at(call.output, tokens - 1, 64), last_output_by_formula());
  MESSAGE("relative error of the last output: " << error);
  CHECK(error <= 5e-3);
  const auto numbers = call.states.read();
  CHECK(numbers[static_cast<std::size_t>((heads - 1) * Format::head_elements + Format::normaliser_offset + 152)] ==
        static_cast<float>(tokens + prefix));

  // Every element was written.
  std::vector<BFloat16> sample(heads * 64);
  for (std::int64_t t = 0; t < tokens; t += 997) {
    require_cuda(cudaMemcpy(sample.data(), call.output.data() + t * heads * 64, sample.size() * sizeof(BFloat16),
                            cudaMemcpyDeviceToHost),
                 "copy");
    for (const BFloat16 y : sample) {
      REQUIRE(y.bits != 0xffff);
    }
  }
}

TEST_CASE("gradients of a million tokens in one call") {
  Prefilled call;
  Memory output_gradient(tokens * heads * 64), value_gradient(tokens * heads * 64);
  Memory query_gradient(tokens * heads * 16), key_gradient(tokens * heads * 16);
  if (!call.run() || output_gradient.data() == nullptr || value_gradient.data() == nullptr ||
      query_gradient.data() == nullptr || key_gradient.data() == nullptr) {
    MESSAGE("skipped: the device has too little memory");
    return;
  }
  fill<<<1024, 256>>>(output_gradient.data(), tokens * heads * 64, 3);
  BackwardArgs<Config> args;
  args.query = call.args.query;
  args.key = call.args.key;
  args.value = call.args.value;
  args.key_encoder = call.args.key_encoder;
  args.value_encoder = call.args.value_encoder;
  args.output = call.args.output;
  args.denominators = call.args.denominators;
  args.output_gradient = view_bthd<const BFloat16>(output_gradient.data(), wide);
  args.query_gradient = view_bthd(query_gradient.data(), narrow);
  args.key_gradient = view_bthd(key_gradient.data(), narrow);
  args.value_gradient = view_bthd(value_gradient.data(), wide);
  const Status status = backward(args, Cuda{});
  INFO(std::string(status.message()));
  REQUIRE(status.ok());

  // By the chain rule over all pairs, of the last head: the first key and value, which every query sees, and the last
  // query, which sees every key. The denominators, and but for the last query dy·y, are the device's, which the case above
  // ties to the formula. Roundings of many outputs average out.
  const auto denominators = call.denominators.read();
  std::vector<BFloat16> outputs(static_cast<std::size_t>(tokens * 64));
  require_cuda(cudaMemcpy2D(outputs.data(), 64 * sizeof(BFloat16), call.output.data() + (heads - 1) * 64,
                            heads * 64 * sizeof(BFloat16), 64 * sizeof(BFloat16), tokens, cudaMemcpyDeviceToHost),
               "copy");
  std::vector<double> query_sums(16);
  std::vector<double> key_sums(16);
  std::vector<double> value_sums(64);
  const auto slope = [&](std::int64_t i, std::int64_t j, const auto& output) {  // of the weight's own score
    double along = 0;
    for (int c = 0; c < 64; ++c) {
      along += number(i, 64, 3, c) * (number(j, 64, 2, c) - output(c));
    }
    return along * (1 + score(i, j)) / 4 /
           static_cast<double>(denominators[static_cast<std::size_t>(i * heads + heads - 1)]);
  };
  const std::vector<double> last_output = last_output_by_formula();
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double of_first = slope(t, 0, [&](int c) {
      return static_cast<double>(static_cast<float>(outputs[static_cast<std::size_t>(t * 64 + c)]));
    });
    const double of_last =
        slope(tokens - 1, t, [&](int c) { return last_output[static_cast<std::size_t>(c)]; }) * (t < prefix ? 2 : 1);
    for (int c = 0; c < 16; ++c) {
      key_sums[static_cast<std::size_t>(c)] += of_first * number(t, 16, 0, c);
      query_sums[static_cast<std::size_t>(c)] += of_last * number(t, 16, 1, c);
    }
    const double weight =
        weight_of(score(t, 0)) / static_cast<double>(denominators[static_cast<std::size_t>(t * heads + heads - 1)]);
    for (int c = 0; c < 64; ++c) {
      value_sums[static_cast<std::size_t>(c)] += weight * number(t, 64, 3, c);
    }
  }
  const double query_error = relative_error(row_at(query_gradient, tokens - 1, 16), query_sums);
  const double key_error = relative_error(row_at(key_gradient, 0, 16), key_sums);
  const double value_error = relative_error(row_at(value_gradient, 0, 64), value_sums);
  MESSAGE("relative errors: last query " << query_error << ", first key " << key_error << ", first value " << value_error);
  CHECK(query_error <= 2e-2);  // of single rows, not of tensors
  CHECK(key_error <= 2e-2);
  CHECK(value_error <= 1e-2);
}

}  // namespace
}  // namespace jrt::test
