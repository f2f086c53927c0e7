// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/language.hpp"

#if !EIGEN_VERSION_AT_LEAST(3, 4, 0)
#error "jrt needs Eigen 3.4 or newer."
#endif

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

// The few vector operations that the kernels need, on Eigen's packets: whatever instruction set the user compiles for,
// down to plain scalars.

template <class T>
using Packet = typename Eigen::internal::packet_traits<T>::type;

/// Numbers in a packet.
template <class T>
inline constexpr int lanes = Eigen::internal::packet_traits<T>::size;

/// Vector registers that the instruction set has.
inline constexpr int vector_registers = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS;

template <class T>
inline Packet<T> load(const T* from) {
  return Eigen::internal::ploadu<Packet<T>>(from);
}
template <class T>
inline void store(T* to, const Packet<T>& packet) {
  Eigen::internal::pstoreu(to, packet);
}

/// Whether `store_past_caches` does what it says here; otherwise it is a plain store.
inline constexpr bool stores_past_caches =
#if defined(__clang__) || defined(__SSE2__)
    true;
#else
    false;
#endif

/// Stores what is not read soon without bringing its memory to the caches first. `to` is aligned to the packet's size.
/// Before another thread reads, the writer calls `finish_stores`.
template <class T>
inline void store_past_caches(T* to, const Packet<T>& packet) {
#if defined(__clang__)
  __builtin_nontemporal_store(packet, reinterpret_cast<Packet<T>*>(to));
#elif defined(__SSE2__)
  if constexpr (sizeof packet == sizeof(__m128i)) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(packet));
#if defined(__AVX__)
  } else if constexpr (sizeof packet == sizeof(__m256i)) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(packet));
#endif
#if defined(__AVX512F__)
  } else if constexpr (sizeof packet == sizeof(__m512i)) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(packet));
#endif
  } else {
    store(to, packet);  // Eigen's packets are scalars, as with EIGEN_DONT_VECTORIZE
  }
#else
  store(to, packet);
#endif
}
inline void finish_stores() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <class T>
inline Packet<T> broadcast(T value) {
  return Eigen::internal::pset1<Packet<T>>(value);
}
template <class P>
inline P add(const P& a, const P& b) {
  return Eigen::internal::padd(a, b);
}
template <class P>
inline P multiply(const P& a, const P& b) {
  return Eigen::internal::pmul(a, b);
}
/// a * b + c
template <class P>
inline P multiply_add(const P& a, const P& b, const P& c) {
  return Eigen::internal::pmadd(a, b, c);
}

/// The first `count` numbers of a packet, and 0 for the others; all of it, where it has no more.
template <class T>
inline Packet<T> first_lanes(const Packet<T>& packet, std::ptrdiff_t count) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  struct Masks {
    Bits bits[2 * lanes<T>] = {};
    constexpr Masks() {
      for (int i = 0; i < lanes<T>; ++i) {
        bits[i] = ~Bits{0};
      }
    }
  };
  static constexpr Masks masks;
  const std::ptrdiff_t kept = count < 0 ? 0 : count < lanes<T> ? count : lanes<T>;
  Packet<T> mask;
  std::memcpy(&mask, masks.bits + lanes<T> - kept, sizeof mask);
  return Eigen::internal::pand(packet, mask);
}

/// Σ a[i] * b[i] over `count` numbers, a multiple of the lanes. Four partial sums, for the latency of the additions.
template <class T>
inline T dot(const T* a, const T* b, std::ptrdiff_t count) {
  constexpr std::ptrdiff_t width = lanes<T>;
  Packet<T> sums[4] = {broadcast(T(0)), broadcast(T(0)), broadcast(T(0)), broadcast(T(0))};
  std::ptrdiff_t i = 0;
  for (; i + 4 * width <= count; i += 4 * width) {
    for (int s = 0; s < 4; ++s) {
      sums[s] = multiply_add(load(a + i + s * width), load(b + i + s * width), sums[s]);
    }
  }
  for (; i < count; i += width) {
    sums[0] = multiply_add(load(a + i), load(b + i), sums[0]);
  }
  return Eigen::internal::predux(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

/// Σ a[i] over `count` numbers, a multiple of the lanes.
template <class T>
inline T sum(const T* a, std::ptrdiff_t count) {
  Packet<T> sums = load(a);
  for (std::ptrdiff_t i = lanes<T>; i < count; i += lanes<T>) {
    sums = add(sums, load(a + i));
  }
  return Eigen::internal::predux(sums);
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
