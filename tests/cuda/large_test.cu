// SPDX-License-Identifier: Apache-2.0
// More than a million tokens in one call, in tensors of more than 2^31 elements.
#include <jrt/cuda.cuh>

#include <doctest/doctest.h>

#include <cmath>
#include <jrt/prefill.hpp>
#include <string>
#include <vector>

#include "support/configs.hpp"
#include "support/cuda_backend.cuh"

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

TEST_CASE("a million tokens in one call") {
  constexpr std::int64_t tokens = (1 << 20) + 77;
  constexpr std::int64_t prefix = tokens / 2;
  constexpr std::int64_t heads = 33;
  static_assert(tokens * heads * 64 > std::int64_t{1} << 31);
  Memory query(tokens * heads * 16), key(tokens * heads * 16), value(tokens * heads * 64), output(tokens * heads * 64);
  if (query.data() == nullptr || key.data() == nullptr || value.data() == nullptr || output.data() == nullptr) {
    MESSAGE("skipped: the device has too little memory");
    return;
  }
  fill<<<1024, 256>>>(query.data(), tokens * heads * 16, 0);
  fill<<<1024, 256>>>(key.data(), tokens * heads * 16, 1);
  fill<<<1024, 256>>>(value.data(), tokens * heads * 64, 2);
  require_cuda(cudaMemset(output.data(), 0xff, sizeof(BFloat16) * tokens * heads * 64), "poison");
  const TensorShape narrow{1, tokens, heads, 16};
  const TensorShape wide{1, tokens, heads, 64};
  DeviceArray<float> states(std::vector<float>(static_cast<std::size_t>(heads * Format::head_elements)));
  PrefillArgs<Config> args;
  args.query = view_bthd<const BFloat16>(query.data(), narrow);
  args.key = view_bthd<const BFloat16>(key.data(), narrow);
  args.value = view_bthd<const BFloat16>(value.data(), wide);
  args.key_encoder = args.key.slice_tokens(0, prefix);
  args.value_encoder = args.value.slice_tokens(0, prefix);
  args.output = view_bthd(output.data(), wide);
  args.final_state = {view_pool<Format>(states.data(), 1, heads)};
  const Status status = prefill(args, Cuda{});
  INFO(std::string(status.message()));
  REQUIRE(status.ok());

  // The last token of the last head by the formula, in double, over all pairs; and its state's count.
  const std::int64_t head = heads - 1;
  const auto row = [&](std::int64_t t, int dim, int tensor, int c) {
    const std::int64_t index = (t * heads + head) * dim + c;
    const float number = tensor == 2 ? value_at(index, tokens * heads * 64)
                                     : number_at(static_cast<std::uint64_t>(index), static_cast<std::uint64_t>(tensor));
    return static_cast<double>(static_cast<float>(BFloat16(number)));
  };
  std::vector<double> sums(64);
  double weights = 0;
  for (std::int64_t j = 0; j < tokens; ++j) {
    double dot = 0;
    for (int c = 0; c < 16; ++c) {
      dot += row(tokens - 1, 16, 0, c) * row(j, 16, 1, c);
    }
    const double s = dot / 4;
    const double weight = (1 + s + s * s / 2) * (j < prefix ? 2 : 1);  // a prefix token is read twice
    weights += weight;
    for (int c = 0; c < 64; ++c) {
      sums[static_cast<std::size_t>(c)] += weight * row(j, 64, 2, c);
    }
  }
  std::vector<BFloat16> last(64);
  require_cuda(cudaMemcpy(last.data(), output.data() + ((tokens - 1) * heads + head) * 64, 64 * sizeof(BFloat16),
                          cudaMemcpyDeviceToHost),
               "copy");
  double difference = 0;
  double norm = 0;
  for (int c = 0; c < 64; ++c) {
    const double expected = sums[static_cast<std::size_t>(c)] / weights;
    difference += std::pow(static_cast<double>(static_cast<float>(last[static_cast<std::size_t>(c)])) - expected, 2);
    norm += expected * expected;
  }
  MESSAGE("relative error of the last output: " << std::sqrt(difference / norm));
  CHECK(std::sqrt(difference / norm) <= 5e-3);
  const auto numbers = states.read();
  CHECK(numbers[static_cast<std::size_t>(head * Format::head_elements + Format::normaliser_offset + 152)] ==
        static_cast<float>(tokens + prefix));

  // Every element was written.
  std::vector<BFloat16> sample(heads * 64);
  for (std::int64_t t = 0; t < tokens; t += 997) {
    require_cuda(
        cudaMemcpy(sample.data(), output.data() + t * heads * 64, sample.size() * sizeof(BFloat16), cudaMemcpyDeviceToHost),
        "copy");
    for (const BFloat16 y : sample) {
      REQUIRE(y.bits != 0xffff);
    }
  }
}

}  // namespace
}  // namespace jrt::test
