// SPDX-License-Identifier: Apache-2.0
// The device's conversion instructions give what the host's functions give.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "support/cuda_backend.cuh"

namespace jrt::test {
namespace {

std::uint32_t bits_of(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
float float_of(std::uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
__global__ void widen(const T* from, float* to, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) {
    to[i] = convert<float>(from[i]);
  }
}

template <class T>
__global__ void narrow(const float* from, T* to, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) {
    to[i] = convert<T>(from[i]);
  }
}

TEST_CASE_TEMPLATE("every 16-bit number widens to the same float", T, Half, BFloat16) {
  std::vector<T> numbers(1 << 16);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i].bits = static_cast<std::uint16_t>(i);
  }
  DeviceArray<T> from(numbers);
  DeviceArray<float> to(std::vector<float>(numbers.size()));
  widen<<<256, 256>>>(from.data(), to.data(), 1 << 16);
  const auto widened = to.read();
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const float expected = convert<float>(numbers[i]);
    REQUIRE((std::isnan(expected) ? std::isnan(widened[i]) : bits_of(widened[i]) == bits_of(expected)));
  }
}

TEST_CASE_TEMPLATE("floats round to the same 16-bit number", T, Half, BFloat16) {
  std::vector<float> numbers;
  std::mt19937 generator(5);
  for (int i = 0; i < (1 << 20); ++i) {
    numbers.push_back(float_of(static_cast<std::uint32_t>(generator())));
  }
  // Ties, and neighbours of every 16-bit number.
  for (std::uint32_t bits = 0; bits < (1U << 16); ++bits) {
    T number;
    number.bits = static_cast<std::uint16_t>(bits);
    const auto exact = bits_of(convert<float>(number));
    for (const std::uint32_t step : {0U, 1U, 0x0fffU, 0x1000U, 0x1001U, 0x7fffU, 0x8000U, 0x8001U}) {
      numbers.push_back(float_of(exact + step));
    }
  }
  DeviceArray<float> from(numbers);
  DeviceArray<T> to(std::vector<T>(numbers.size()));
  const int count = static_cast<int>(numbers.size());
  narrow<<<(count + 255) / 256, 256>>>(from.data(), to.data(), count);
  const auto narrowed = to.read();
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const T expected = convert<T>(numbers[i]);
    REQUIRE((std::isnan(numbers[i]) ? std::isnan(convert<float>(narrowed[i])) : narrowed[i] == expected));
  }
}

}  // namespace
}  // namespace jrt::test
