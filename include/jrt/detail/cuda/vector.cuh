// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// Vectors of elements, as wide as one memory access.
namespace jrt::detail::cuda {

inline constexpr int access_bytes = 16;

/// `count` values that are read and written with one instruction each 16 bytes.
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
  constexpr std::int64_t each = access_bytes / static_cast<std::int64_t>(sizeof(T));
  return reinterpret_cast<std::uintptr_t>(data) % access_bytes == 0 && ((strides % each == 0) && ...);
}

}  // namespace jrt::detail::cuda
