// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cpu/core/tuning.hpp"
#include "jrt/detail/integer.hpp"
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
  friend class LinePrefetch;

  const char* first_ = nullptr;
  std::int64_t stride_ = 0;
  std::int64_t bytes_ = 0;
  std::int64_t rows_ = 0;
};

/// Rows of two views, a cache line at a time, from within a product. A core has a dozen or two requests to memory on their
/// way; whoever asks for more waits, and so does what comes after.
class LinePrefetch {
 public:
  LinePrefetch(const RowPrefetch& one, const RowPrefetch& other) : rows_{one, other} { begin_row(); }

  /// Asks for the next line, if there is one.
  void issue() {
    if (lines_ != 0) {
      __builtin_prefetch(line_, 0, 2);
      line_ += cache_line_bytes;
      if (--lines_ == 0) {
        begin_row();
      }
    }
  }

 private:
  void begin_row() {
    for (; view_ < 2; ++view_, row_ = 0) {
      const RowPrefetch& rows = rows_[view_];
      if (row_ < rows.rows_) {
        const char* const row = rows.first_ + row_ * rows.stride_;
        const auto offset = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(row) % cache_line_bytes);
        line_ = row - offset;
        lines_ = ceil_div(offset + rows.bytes_, cache_line_bytes);
        ++row_;
        return;
      }
    }
  }

  RowPrefetch rows_[2];
  int view_ = 0;
  std::int64_t row_ = 0;
  const char* line_ = nullptr;
  std::int64_t lines_ = 0;  // of the row, not yet asked for
};

}  // namespace JRT_DETAIL_CPU_ABI
}  // namespace jrt::detail::cpu
