// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/skinny_product.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

namespace jrt_lm {

namespace {

#if defined(__AVX512F__)
constexpr std::size_t vector_bytes = 64;
#elif defined(__AVX__)
constexpr std::size_t vector_bytes = 32;
#else
constexpr std::size_t vector_bytes = 16;
#endif
using Floats [[gnu::vector_size(vector_bytes)]] = float;
using Bits [[gnu::vector_size(vector_bytes)]] = std::uint32_t;

constexpr std::int64_t lanes = vector_bytes / sizeof(float);
constexpr std::int64_t step = 2 * lanes;  // numbers of 16 bits in a vector

constexpr int together_rows = 4;
constexpr int together_outputs = 4;

/// A vector of 16-bit numbers in float: those at even places and those at odd ones, by a shift and a mask. A sum has no
/// order, as long as both factors have the same one.
struct Widened {
  Floats even;
  Floats odd;
};

inline Widened widened(const jrt::BFloat16* from) {
  Bits bits;
  std::memcpy(&bits, from, sizeof bits);
  Widened result;
  const Bits low = bits << 16;
  const Bits high = bits & 0xffff0000U;
  std::memcpy(&result.even, &low, sizeof low);
  std::memcpy(&result.odd, &high, sizeof high);
  return result;
}

template <std::size_t bytes>
struct Vector {
  using type [[gnu::vector_size(bytes)]] = float;
};

/// Sum of a vector's numbers, half by half.
template <std::size_t bytes>
inline float total(const typename Vector<bytes>::type& sums) {
  if constexpr (bytes > 16) {
    using Half = typename Vector<bytes / 2>::type;
    Half halves[2];
    std::memcpy(halves, &sums, sizeof halves);
    const Half half = halves[0] + halves[1];
    return total<bytes / 2>(half);
  } else {
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
  }
}

/// One row times one row of W. The rows of W follow one another, so that memory is read in order, `ahead_bytes` before it
/// is needed: as fast as nothing but reading, but for a tenth, where four rows side by side lose a quarter.
float dot(const jrt::BFloat16* x, const jrt::BFloat16* weight, std::int64_t in) {
  constexpr std::int64_t ahead_bytes = 8192;
  constexpr int steps = 4;  // independent sums, for the latency of additions
  Floats even[steps] = {};
  Floats odd[steps] = {};
  const auto add = [&](int s, const jrt::BFloat16* left, const jrt::BFloat16* right) {
    const Widened a = widened(left);
    const Widened b = widened(right);
    even[s] += a.even * b.even;
    odd[s] += a.odd * b.odd;
  };
  std::int64_t i = 0;
  for (; i + steps * step <= in; i += steps * step) {
#pragma GCC unroll 4
    for (int s = 0; s < steps; ++s) {
      __builtin_prefetch(reinterpret_cast<const char*>(weight + i + s * step) + ahead_bytes);
    }
#pragma GCC unroll 4
    for (int s = 0; s < steps; ++s) {
      add(s, x + i + s * step, weight + i + s * step);
    }
  }
  for (; i + step <= in; i += step) {
    add(0, x + i, weight + i);
  }
  if (i < in) {  // zeros behind the last numbers
    jrt::BFloat16 x_rest[step] = {};
    jrt::BFloat16 weight_rest[step] = {};
    std::copy(x + i, x + in, x_rest);
    std::copy(weight + i, weight + in, weight_rest);
    add(0, x_rest, weight_rest);
  }
  const Floats sums = ((even[0] + odd[0]) + (even[1] + odd[1])) + ((even[2] + odd[2]) + (even[3] + odd[3]));
  return total<vector_bytes>(sums);
}

/// `sums` of some outputs and rows += their products at one vector of places.
template <int Rows, int Outputs>
inline void add_step(Floats (&sums)[Outputs][Rows], const jrt::BFloat16* x, std::int64_t x_columns,
                     const jrt::BFloat16* weight, std::int64_t weight_columns) {
  Widened left[Rows];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
    left[r] = widened(x + r * x_columns);
  }
#pragma GCC unroll 4
  for (int o = 0; o < Outputs; ++o) {
    const Widened right = widened(weight + o * weight_columns);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      sums[o][r] += left[r].even * right.even;
      sums[o][r] += left[r].odd * right.odd;
    }
  }
}

template <int Rows, int Outputs>
void multiply_block(const jrt::BFloat16* x, std::int64_t x_columns, std::int64_t in, const jrt::BFloat16* weight,
                    float* sums, std::int64_t sums_columns) {
  Floats block[Outputs][Rows] = {};
  const std::int64_t whole = in / step * step;
  for (std::int64_t i = 0; i < whole; i += step) {
#pragma GCC unroll 4
    for (int o = 0; o < Outputs; ++o) {
      __builtin_prefetch(weight + (o + Outputs) * in + i);  // the block after this one
    }
    add_step<Rows, Outputs>(block, x + i, x_columns, weight + i, in);
  }
  if (whole < in) {  // zeros behind the last numbers
    jrt::BFloat16 x_rest[Rows * step] = {};
    jrt::BFloat16 weight_rest[Outputs * step] = {};
    for (int r = 0; r < Rows; ++r) {
      std::copy(x + r * x_columns + whole, x + r * x_columns + in, x_rest + r * step);
    }
    for (int o = 0; o < Outputs; ++o) {
      std::copy(weight + o * in + whole, weight + (o + 1) * in, weight_rest + o * step);
    }
    add_step<Rows, Outputs>(block, x_rest, step, weight_rest, step);
  }
  for (int r = 0; r < Rows; ++r) {
    for (int o = 0; o < Outputs; ++o) {
      sums[r * sums_columns + o] = total<vector_bytes>(block[o][r]);
    }
  }
}

using MultiplyBlock = void (*)(const jrt::BFloat16*, std::int64_t, std::int64_t, const jrt::BFloat16*, float*,
                               std::int64_t);

/// `multiply_block` for 1, 2, … rows.
template <int Outputs, int... less_one>
MultiplyBlock block_of(std::int64_t rows, std::integer_sequence<int, less_one...>) {
  static constexpr MultiplyBlock blocks[] = {multiply_block<less_one + 1, Outputs>...};
  return blocks[rows - 1];
}

}  // namespace

void multiply_skinny(const jrt::BFloat16* x, std::int64_t x_columns, std::int64_t rows, std::int64_t in,
                     const jrt::BFloat16* weight, std::int64_t out, float* sums, std::int64_t sums_columns) {
  if (rows == 1) {
    for (std::int64_t o = 0; o < out; ++o) {
      sums[o] = dot(x, weight + o * in, in);
    }
    return;
  }
  constexpr auto counts = std::make_integer_sequence<int, together_rows>{};
  for (std::int64_t o = 0; o < out;) {
    const bool together = o + together_outputs <= out;
    for (std::int64_t r = 0; r < rows; r += together_rows) {
      const std::int64_t count = std::min<std::int64_t>(together_rows, rows - r);
      const MultiplyBlock multiply = together ? block_of<together_outputs>(count, counts) : block_of<1>(count, counts);
      multiply(x + r * x_columns, x_columns, in, weight + o * in, sums + r * sums_columns + o, sums_columns);
    }
    o += together ? together_outputs : 1;
  }
}

}  // namespace jrt_lm
