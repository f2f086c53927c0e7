// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/numeric.hpp"

/// Vectors of elements, as wide as one memory access.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

inline constexpr int access_bytes = 16;

/// `count` values that are read and written with one instruction per 16 bytes.
template <class T, int count>
struct alignas(sizeof(T) * count < access_bytes ? sizeof(T) * count : access_bytes) Vector {
  T values[count];

  __device__ T& operator[](int i) { return values[i]; }
  __device__ const T& operator[](int i) const { return values[i]; }
};

template <int count, class T>
__device__ Vector<T, count> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, count>*>(from);
}
template <int count, class T>
__device__ void store_vector(T* to, const Vector<T, count>& vector) {
  *reinterpret_cast<Vector<T, count>*>(to) = vector;
}

/// Whether rows that start at `data` and lie `strides` elements apart all start at a multiple of 16 bytes.
template <class T, class... Strides>
__host__ __device__ bool rows_aligned(const T* data, Strides... strides) {
  [[maybe_unused]] constexpr std::int64_t each = access_bytes / static_cast<std::int64_t>(sizeof(T));
  return reinterpret_cast<std::uintptr_t>(data) % access_bytes == 0 && ((strides % each == 0) && ...);
}

/// `count` neighbouring values in registers, as stored in memory.
template <class Scalar, int count>
struct StoredNumbers {
  Vector<Scalar, count> numbers{};

  /// `aligned`: whether one access may load them all.
  __device__ void load(const Scalar* from, bool aligned) {
    if (aligned) {
      numbers = load_vector<count>(from);
    } else {
      for (int c = 0; c < count; ++c) {
        numbers[c] = from[c];
      }
    }
  }
  __device__ void store(Scalar* to, bool aligned) const {
    if (aligned) {
      store_vector(to, numbers);
    } else {
      for (int c = 0; c < count; ++c) {
        to[c] = numbers[c];
      }
    }
  }
  /// All values, converted to T.
  template <class T>
  __device__ void get(T (&values)[count]) const {
    for (int c = 0; c < count; ++c) {
      values[c] = convert<T>(numbers[c]);
    }
  }
  template <class T>
  __device__ void set(const T (&values)[count]) {
    for (int c = 0; c < count; ++c) {
      numbers[c] = convert<Scalar>(values[c]);
    }
  }
};

/// 16-bit values, two per register: the compiler would give each its own.
template <class Scalar, int count>
requires(sizeof(Scalar) == 2 && count % 2 == 0) struct StoredNumbers<Scalar, count> {
  Vector<std::uint32_t, count / 2> pairs{};

  __device__ void load(const Scalar* from, bool aligned) {
    if (aligned) {
      pairs = load_vector<count / 2>(reinterpret_cast<const std::uint32_t*>(from));
    } else {
      for (int c = 0; c < count; c += 2) {
        pairs[c / 2] = bits(from[c]) | bits(from[c + 1]) << 16;
      }
    }
  }
  __device__ void store(Scalar* to, bool aligned) const {
    if (aligned) {
      store_vector(reinterpret_cast<std::uint32_t*>(to), pairs);
    } else {
      for (int c = 0; c < count; ++c) {
        to[c] = number(c);
      }
    }
  }
  template <class T>
  __device__ void get(T (&values)[count]) const {
    for (int c = 0; c < count; ++c) {
      values[c] = convert<T>(number(c));
    }
  }
  template <class T>
  __device__ void set(const T (&values)[count]) {
    for (int c = 0; c < count; c += 2) {
      pairs[c / 2] = bits(convert<Scalar>(values[c])) | bits(convert<Scalar>(values[c + 1])) << 16;
    }
  }

 private:
  static __device__ std::uint32_t bits(Scalar number) { return number.bits; }
  [[nodiscard]] __device__ Scalar number(int c) const {
    Scalar number;
    number.bits = static_cast<std::uint16_t>(pairs[c / 2] >> (16 * (c % 2)));
    return number;
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
