// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/backend.hpp"
#include "jrt/policy/taylor.hpp"
#include "jrt/state.hpp"
#include "jrt/status.hpp"

/// Operations on whole states. All take `count` pairs of slots; a pair with a `skip_slot` is skipped. Null slot arrays mean
/// slots 0 … count − 1. A slot that is written must not be used by another pair of the same call. Errors:
/// `invalid_argument`, before anything is written.
namespace jrt {

namespace detail {

/// Whether states of one format can be copied into the other: the same map, or two packings of one Taylor map.
template <class A, class B>
inline constexpr bool convertible_formats = std::is_same_v<A, B>;
template <class A, class B>
requires(!std::is_same_v<A, B> &&
         requires {
           typename A::Features;
           typename B::Features;
         }) inline constexpr bool convertible_formats<A, B> = A::columns == B::columns &&
                                                              (std::is_same_v<typename A::Features, typename B::Features> ||
                                                               (is_taylor2<typename A::Features> &&
                                                                is_taylor2<typename B::Features> &&
                                                                A::input_dim == B::input_dim));

/// Whether states of a format are sums, so that they merge by addition.
template <class Format>
inline constexpr bool is_sum = requires {
  typename Format::Features;
};

}  // namespace detail

/// Resets slots to the empty state, that of a sequence without tokens.
template <class Format, class Execution>
Status clear_states(const StateSlots<Format>& states, std::int64_t count, const Execution& on) {
  return detail::Backend<Execution>::clear_states(states, count, on);
}

/// destination = source, converting storage type and Taylor row order where the formats differ. Forks a sequence, or copies
/// between pools. Between equal storage types the conversion of row orders is exact; where a dense state's entries for x_i
/// x_j and x_j x_i differ, a packing that stores one takes their mean, which gives every query the same output.
template <class SourceFormat, class DestinationFormat, class Execution>
Status copy_states(const StateSlots<SourceFormat>& source, const StateSlots<DestinationFormat>& destination,
                   std::int64_t count, const Execution& on) {
  return detail::Backend<Execution>::copy_states(source, destination, count, on);
}

/// destination += source. States merge by addition: the state of a ‖ b is the sum of the states of a and b, so pieces of a
/// sequence may be summed anywhere and merged.
template <class Format, class Execution>
Status merge_states(const StateSlots<Format>& source, const StateSlots<Format>& destination, std::int64_t count,
                    const Execution& on) {
  static_assert(detail::is_sum<Format>,
                "merge_states: only states of linear attention are sums; caches of a window and inputs of a convolution "
                "cannot be added up.");
  return detail::Backend<Execution>::merge_states(source, destination, count, on);
}

}  // namespace jrt
