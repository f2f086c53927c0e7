// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/host_device.hpp"

namespace jrt {

/// Extents of a (batch, token, head, dim) tensor, named so that they cannot be swapped.
struct TensorShape {
  std::int64_t batch = 1;
  std::int64_t tokens = 0;
  std::int64_t heads = 1;
  std::int64_t dim = 0;
};

/// Strided view of the caller's memory: element (b, t, h, c) lies at
/// `data[b * batch_stride + t * token_stride + h * head_stride + c]`. Strides are in elements, the innermost dimension is
/// contiguous, addressing is 64-bit. [B,T,H,d], [B,H,T,d] and slices of a packed QKV tensor are all such views; none is
/// ever copied. A view of packed variable-length sequences has `batch = 1` and `tokens` = the total of all sequences.
///
/// An input may have stride 0 (broadcast); an output's rows must not overlap.
template <class T>
struct TensorView {
  T* data = nullptr;
  std::int64_t batch = 0;
  std::int64_t tokens = 0;
  std::int64_t heads = 0;
  std::int64_t dim = 0;
  std::int64_t batch_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;

  /// The `dim` contiguous elements of one token and head.
  [[nodiscard]] JRT_DETAIL_HD constexpr T* row(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return data + (b * batch_stride + t * token_stride + h * head_stride);
  }

  /// Tokens [first, first + count) of every sequence, to process a prompt in pieces.
  [[nodiscard]] JRT_DETAIL_HD constexpr TensorView slice_tokens(std::int64_t first, std::int64_t count) const {
    TensorView slice = *this;
    slice.data += first * token_stride;
    slice.tokens = count;
    return slice;
  }

  /// Heads [first, first + count), to take q and k out of a packed projection whose heads have one width.
  [[nodiscard]] JRT_DETAIL_HD constexpr TensorView slice_heads(std::int64_t first, std::int64_t count) const {
    TensorView slice = *this;
    slice.data += first * head_stride;
    slice.heads = count;
    return slice;
  }

  /// Sequences [first, first + count) of a dense batch.
  [[nodiscard]] JRT_DETAIL_HD constexpr TensorView slice_batch(std::int64_t first, std::int64_t count) const {
    TensorView slice = *this;
    slice.data += first * batch_stride;
    slice.batch = count;
    return slice;
  }

  /// The same elements with tokens and heads exchanged: what was read as (batch, head, token, dim) in the order of a
  /// tensor's own dimensions becomes (batch, token, head, dim).
  [[nodiscard]] JRT_DETAIL_HD constexpr TensorView transposed() const {
    return {data, batch, heads, tokens, dim, batch_stride, head_stride, token_stride};
  }

  /// A view of T converts to a view of const T.
  template <class Const>
  requires(!std::is_const_v<T> && std::is_same_v<Const, const T>) JRT_DETAIL_HD constexpr operator TensorView<Const>()
      const {
    return {data, batch, tokens, heads, dim, batch_stride, token_stride, head_stride};
  }
};

/// View of contiguous memory in (batch, token, head, dim) order; also of packed (total tokens, head, dim) with batch = 1.
template <class T>
JRT_DETAIL_HD constexpr TensorView<T> view_bthd(T* data, const TensorShape& shape) {
  const std::int64_t token_stride = shape.heads * shape.dim;
  return {data, shape.batch, shape.tokens, shape.heads, shape.dim, shape.tokens * token_stride, token_stride, shape.dim};
}

/// View of contiguous memory in (batch, head, token, dim) order.
template <class T>
JRT_DETAIL_HD constexpr TensorView<T> view_bhtd(T* data, const TensorShape& shape) {
  const std::int64_t head_stride = shape.tokens * shape.dim;
  return {data, shape.batch, shape.tokens, shape.heads, shape.dim, shape.heads * head_stride, shape.dim, head_stride};
}

}  // namespace jrt
