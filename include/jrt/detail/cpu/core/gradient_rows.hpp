// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/rows.hpp"
#include "jrt/detail/plan/token_range.hpp"
#include "jrt/numeric.hpp"
#include "jrt/tensor_view.hpp"

/// From gradients in a task's scratch to the caller's tensors.
namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// The rows of one head of one sequence in a gradient's view.
template <class Element>
struct GradientRows {
  TensorView<Element> view;
  std::int64_t row = 0;    // batch row
  std::int64_t first = 0;  // the sequence's token 0 in that row
  std::int64_t head = 0;

  [[nodiscard]] Element* of(std::int64_t token) const { return view.row(row, first + token, head); }
};

/// Writes columns, one for each token, as rows; those of tokens before `zero_end` are 0.
template <class Element, class T>
void write_columns(const GradientRows<Element>& to, const TokenRange& tokens, std::int64_t zero_end, const T* columns,
                   std::ptrdiff_t column_stride) {
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
    Element* const gradient = to.of(token);
    const T* const column = columns + (token - tokens.begin);
    for (std::int64_t i = 0; i < to.view.dim; ++i) {
      gradient[i] = convert<Element>(token < zero_end ? T(0) : column[i * column_stride]);
    }
  }
}

template <class Element, class T>
void write_rows(const GradientRows<Element>& to, const TokenRange& tokens, const T* rows, std::ptrdiff_t stride) {
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
    convert_row(rows + (token - tokens.begin) * stride, to.of(token), to.view.dim);
  }
}

/// Zeroes the rows of positions [0, end) that are not in `kept`, if there is a view.
template <class Element>
void zero_rows(const GradientRows<Element>& to, const TokenRange& kept, std::int64_t end) {
  for (std::int64_t token = 0; to.view.data != nullptr && token < end; ++token) {
    if (token < kept.begin || token >= kept.end) {
      std::fill_n(to.of(token), to.view.dim, Element{});
    }
  }
}

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
