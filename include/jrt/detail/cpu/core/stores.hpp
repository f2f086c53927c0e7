// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/simd.hpp"
#include "jrt/tensor_view.hpp"

/// Outputs past the caches: what is written whole need not be read first, and does not drive out what is.
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Whether outputs stay in the caches, for the next reader, or go straight to memory.
enum class Stores { in_caches, past_caches };

/// Outputs too large for a cache to keep until they are read go past it.
template <class E>
bool passes_caches(const TensorView<E>& output) {
  constexpr std::int64_t large = std::int64_t{16} << 20;
  return output.batch * output.tokens * output.heads * output.dim * static_cast<std::int64_t>(sizeof(E)) >= large;
}

/// Whether every row of a view is whole packets of T at multiples of a packet, as `store_row_past_caches` wants them. Rows
/// that are narrowed first are not: what is saved is lost again between the conversion and the store (measured).
template <class T, class E>
bool has_rows_of_packets(const TensorView<E>& view) {
  constexpr auto packet = static_cast<std::int64_t>(sizeof(Packet<T>));
  const auto whole = [](std::int64_t numbers) { return numbers * static_cast<std::int64_t>(sizeof(E)) % packet == 0; };
  return stores_past_caches && std::is_same_v<T, E> &&
         reinterpret_cast<std::uintptr_t>(view.data) % sizeof(Packet<T>) == 0 && whole(view.batch_stride) &&
         whole(view.token_stride) && whole(view.head_stride) && whole(view.dim);
}

/// output = row · factor, in a row of whole packets. Before another thread reads, the writer calls `finish_stores`.
template <class T>
void store_row_past_caches(const T* row, T factor, T* output, int columns) {
  for (int c = 0; c < columns; c += lanes<T>) {
    store_past_caches(output + c, multiply(load(row + c), broadcast(factor)));
  }
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
