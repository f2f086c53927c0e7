// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "jrt/detail/backend.hpp"
#include "jrt/detail/host_device.hpp"
#include "jrt/numeric.hpp"
#include "jrt/policy/taylor.hpp"
#include "jrt/state.hpp"
#include "jrt/status.hpp"

/// State exchange with other programs: plain arrays in the authors' dense row order, and saved bytes.
namespace jrt {

namespace detail {

template <class Map>
struct DenseMapOf {
  using type = Map;
};
template <int d, class Packing>
struct DenseMapOf<Taylor2<d, Packing>> {
  using type = Taylor2<d, DensePacking>;
};

}  // namespace detail

/// The feature map in the row order of other implementations: `1 | x | vec(x xᵀ)` for Taylor maps, unchanged for all
/// others.
template <class Map>
using DenseMap = typename detail::DenseMapOf<Map>::type;

/// States as plain strided arrays: S(b, h, r, c) at `sums[b * sequence_stride + h * head_stride + r * row_stride +
/// c * column_stride]`, z(b, h, r) at `normaliser[b * normaliser_sequence_stride + h * normaliser_head_stride + r]`, rows
/// in dense order. With row_stride = 1 and column_stride = D it is the authors' cache, (B, H, dv, D).
template <Element Scalar>
struct DenseStates {
  Scalar* sums = nullptr;
  std::int64_t sequence_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 1;
  Scalar* normaliser = nullptr;
  std::int64_t normaliser_sequence_stride = 0;
  std::int64_t normaliser_head_stride = 0;
};

/// Contiguous (B, H, D, dv) and (B, H, D) arrays for states of `Format`.
template <class Format, Element Scalar>
DenseStates<Scalar> view_dense_states(Scalar* sums, Scalar* normaliser, std::int64_t heads) {
  constexpr std::int64_t rows = DenseMap<typename Format::Features>::feature_dim;
  constexpr std::int64_t head = rows * Format::columns;
  return {sums, heads * head, head, Format::columns, 1, normaliser, heads * rows, rows};
}

namespace detail {

/// Dense arrays of sequence `b` and head `h`.
template <class Scalar>
JRT_DETAIL_HD DenseStates<Scalar> dense_head(const DenseStates<Scalar>& dense, std::int64_t b, std::int64_t h) {
  DenseStates<Scalar> head = dense;
  head.sums += b * dense.sequence_stride + h * dense.head_stride;
  head.normaliser += b * dense.normaliser_sequence_stride + h * dense.normaliser_head_stride;
  return head;
}

}  // namespace detail

/// Writes `count` states to dense arrays. Exact if `Scalar` can represent the state's values. The arrays of a sequence with
/// `skip_slot` are left unchanged.
template <class Format, Element Scalar, class Execution>
Status export_states(const StateSlots<Format>& source, const DenseStates<Scalar>& destination, std::int64_t count,
                     const Execution& on) {
  return detail::Backend<Execution>::export_states(source, destination, count, on);
}

/// Reads `count` states from dense arrays; the counterpart of `export_states`. Where a dense state's entries for x_i x_j
/// and x_j x_i differ, a packing that stores one takes their mean, which gives every query the same output.
template <class Format, Element Scalar, class Execution>
Status import_states(const DenseStates<Scalar>& source, const StateSlots<Format>& destination, std::int64_t count,
                     const Execution& on) {
  return detail::Backend<Execution>::import_states(source, destination, count, on);
}

/// Header at the front of saved states; a stack has one for the whole, then one for each layer. All fields are in the byte
/// order of the machine that saved, which `byte_order` records. The values follow, slot by slot and head by head: for
/// linear attention S, then z, without padding; for mixers whose state has several arrays, and for stacks, the bytes of the
/// slot as they are, gaps included (if the pool was cleared once, equal states give equal bytes).
struct SavedStatesHeader {
  static constexpr char expected_magic[8] = {'J', 'R', 'T', 'S', 'T', 'A', 'T', 'E'};
  static constexpr std::uint32_t expected_byte_order = 0x01020304;
  static constexpr std::uint32_t current_version = 1;

  char magic[8];
  std::uint32_t byte_order;
  std::uint32_t version;
  char scalar[16];       // element_name; two short names for a hybrid
  char feature_map[32];  // FeatureMap::name, cut to fit
  std::uint32_t input_dim;
  std::uint32_t rows;
  std::uint32_t columns;
  std::uint32_t reserved;
  std::int64_t heads;
  std::int64_t count;
};
static_assert(sizeof(SavedStatesHeader) == 96 && std::is_trivially_copyable_v<SavedStatesHeader>);

namespace detail {

/// Number of headers before the values of saved states.
template <class Format>
inline constexpr std::int64_t saved_headers = 1;

/// Name of the type of a format's values in saved states.
template <class Format>
constexpr const char* saved_scalar_name() {
  if constexpr (requires { Format::scalar_name; }) {
    return Format::scalar_name;
  } else if constexpr (saved_headers<Format> == 1) {
    return element_name<typename Format::Scalar>();
  } else {
    return "mixed";
  }
}

}  // namespace detail

/// Bytes that `save_states` writes.
template <class Format>
constexpr std::int64_t saved_states_bytes(std::int64_t count, std::int64_t heads) {
  return detail::saved_headers<Format> * static_cast<std::int64_t>(sizeof(SavedStatesHeader)) +
         count * heads * Format::head_values * static_cast<std::int64_t>(sizeof(typename Format::Scalar));
}

/// Writes `count` states, with a header that describes them, into a buffer of at least `saved_states_bytes` bytes of host
/// memory. The state of a `skip_slot` is saved as empty. Loading restores the same bits.
///
/// On a stream the copy is asynchronous: the buffer must live until the stream has completed it, and should be pinned (into
/// pageable memory the runtime copies before the call returns). Allocates temporary memory on the stream.
template <class Format, class Execution>
Status save_states(const StateSlots<Format>& source, std::int64_t count, std::span<std::byte> buffer, const Execution& on) {
  return detail::Backend<Execution>::save_states(source, count, buffer, on);
}

/// Reads `count` states that `save_states` wrote. Error `corrupt_data`, with nothing written, if the bytes are truncated or
/// not of this version, feature map, shape, type, or count, or if the token count of a window's head is negative, above
/// `WindowFormat::max_tokens`, or different from that of the state's other heads; the message gives both values. All other
/// values only enter sums and products: untrusted bytes can make outputs wrong, but affect nothing else.
///
/// On a stream the copy is asynchronous, as in `save_states`. The bytes are checked during the call, so they must be
/// complete by then (after a save to pinned memory, synchronise the stream first), and the buffer must live until the
/// stream has read it.
template <class Format, class Execution>
Status load_states(std::span<const std::byte> buffer, const StateSlots<Format>& destination, std::int64_t count,
                   const Execution& on) {
  return detail::Backend<Execution>::load_states(buffer, destination, count, on);
}

}  // namespace jrt
