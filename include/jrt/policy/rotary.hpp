// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>

#include "jrt/detail/host_device.hpp"

namespace jrt {

/// Policy: whether and how window attention rotates queries and keys by their position.
///
/// Requires:   `static constexpr bool rotates`; if true, `half_dim` and `rotation(position, i)`, which returns cosine and
///             sine of the angle of pair i (elements i and i + half_dim of a vector) at a position counted from 0, as a
///             `Rotation<T>` for float and double; for the CUDA backend callable on host and device.
/// Guarantees: positions are counted by the cache, without left pads; every key is rotated once, on arrival.
/// Cost:       one sine and cosine for each pair of each key and query.
/// Default:    `NoRotary`.
/// Tested by:  tests/policy/rotary_test.cpp, tests/mixer/window_attention_test.cpp
template <class R>
concept Rotary = requires {
  { R::rotates } -> std::convertible_to<bool>;
};

/// Queries and keys are not rotated.
struct NoRotary {
  static constexpr bool rotates = false;
};

template <class T>
struct Rotation {
  T cosine;
  T sine;
};

/// Rotary position embedding (Su et al. 2021) over the whole vector in the convention of halves (GPT-NeoX):
///
///     (x_i, x_{i+d/2}) → (x_i cos a − x_{i+d/2} sin a, x_i sin a + x_{i+d/2} cos a),   a = position · base^(−2i/d).
///
/// Angles are kept in turns as 64-bit fractions, so that their reduction is exact: the error does not grow with the
/// position, unlike that of a product of floats (0.06 at position 1 million).
///
/// Construct it once and pass it to every call: the constructor computes a power for each pair.
template <int HeadDim>
class RotaryHalves {
 public:
  static_assert(HeadDim >= 2 && HeadDim % 2 == 0, "RotaryHalves: HeadDim must be even, because numbers rotate in pairs.");
  static constexpr bool rotates = true;
  static constexpr int half_dim = HeadDim / 2;

  explicit RotaryHalves(double base = 10000) {
    for (int i = 0; i < half_dim; ++i) {
      const long double exponent = -2.0L * static_cast<long double>(i) / HeadDim;
      set_frequency(i, std::pow(static_cast<long double>(base), exponent));
    }
  }

  /// Sets the angle of pair i for each token, in radians, for scaled variants of the embedding.
  void set_frequency(int i, long double radians) {
    constexpr long double two_pi = 6.283185307179586476925286766559005768L;
    const long double turns = radians / two_pi;
    turns_[i] = static_cast<std::uint64_t>((turns - std::floor(turns)) * 0x1p64L);
  }

  /// The angle of pair i at a position in turns, times 2^64. Phases of positions may be added.
  [[nodiscard]] JRT_DETAIL_HD std::uint64_t phase(std::int64_t position, int i) const {
    return static_cast<std::uint64_t>(position) * turns_[i];
  }
  /// The angle of a phase in half turns, from −1 to 1, with as many bits as T holds.
  template <class T>
  [[nodiscard]] static JRT_DETAIL_HD T half_turns(std::uint64_t phase) {
    return sizeof(T) == sizeof(double) ? static_cast<T>(static_cast<std::int64_t>(phase)) * static_cast<T>(0x1p-63)
                                       : static_cast<T>(static_cast<std::int32_t>(phase >> 32)) * static_cast<T>(0x1p-31);
  }

  template <class T>
  [[nodiscard]] JRT_DETAIL_HD Rotation<T> rotation(std::int64_t position, int i) const {
#if defined(__CUDA_ARCH__)
    Rotation<T> result;
    sincospi(half_turns<T>(phase(position, i)), &result.sine, &result.cosine);
    return result;
#else
    const T angle = half_turns<T>(phase(position, i)) * static_cast<T>(3.14159265358979323846);
    return {std::cos(angle), std::sin(angle)};
#endif
  }

 private:
  std::uint64_t turns_[half_dim] = {};
};

namespace detail {

template <class R>
inline constexpr bool is_rotary_halves = false;
template <int d>
inline constexpr bool is_rotary_halves<RotaryHalves<d>> = true;

}  // namespace detail

}  // namespace jrt
