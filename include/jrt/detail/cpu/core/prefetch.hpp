// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/tensor_view.hpp"

namespace jrt::detail::cpu {
inline namespace JRT_DETAIL_CPU_ABI {

/// Asks for rows of one head to be brought into the cache. They are often a page apart ([B,T,H,d] views), which defeats the
/// hardware's own prefetching; asked for one chunk ahead, and a few at a time, they arrive while the current chunk is
/// computed. Into the second level: rows a page apart share a few sets of the first.
class RowPrefetch {
 public:
  RowPrefetch() = default;

  /// Rows [first_token, end_token) of one batch row and head of a view.
  template <class Element>
  RowPrefetch(const TensorView<Element>& view, std::int64_t batch_row, std::int64_t first_token, std::int64_t end_token,
              std::int64_t head)
      : first_(reinterpret_cast<const char*>(view.row(batch_row, first_token, head))),
        stride_(view.token_stride * static_cast<std::int64_t>(sizeof(Element))),
        bytes_(view.dim * static_cast<std::int64_t>(sizeof(Element))),
        rows_(end_token - first_token) {}

  /// Rows [first, first + count), as far as they exist.
  void issue(std::int64_t first, std::int64_t count) const {
    for (std::int64_t r = first; r < first + count && r < rows_; ++r) {
      const char* const row = first_ + r * stride_;
      for (std::int64_t offset = 0; offset < bytes_; offset += cache_line_bytes) {
        __builtin_prefetch(row + offset, 0, 2);
      }
      __builtin_prefetch(row + bytes_ - 1, 0, 2);
    }
  }

 private:
  const char* first_ = nullptr;
  std::int64_t stride_ = 0;
  std::int64_t bytes_ = 0;
  std::int64_t rows_ = 0;
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
