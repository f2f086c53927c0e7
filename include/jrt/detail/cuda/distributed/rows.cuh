// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/tuning.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/sequence.cuh"
#include "jrt/detail/distributed/backend.hpp"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/window_range.hpp"
#include "jrt/execution/cuda.cuh"
#include "jrt/numeric.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

/// Rows of tokens between ranks: few, beside a kernel that has almost all of the device, so that each takes few blocks.
namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// `work(row, i)` for the elements of a view's rows, one thread each.
template <class T, class Work>
__global__ void __launch_bounds__(state_threads)
    for_elements(const __grid_constant__ TensorView<T> to, const __grid_constant__ Work work) {
  const std::int64_t element = std::int64_t{blockIdx.x} * state_threads + threadIdx.x;
  const std::int64_t token = element / (to.heads * to.dim);
  if (token < to.tokens) {
    const std::int64_t head = element / to.dim % to.heads;
    work(to.row(0, token, head), token, head, element % to.dim);
  }
}
template <class T>
struct AddRows {
  TensorView<const T> from;
  __device__ void operator()(T* row, std::int64_t token, std::int64_t head, std::int64_t i) const {
    using Compute = ComputeType<T>;
    row[i] = convert<T>(convert<Compute>(row[i]) + convert<Compute>(from.row(0, token, head)[i]));
  }
};
template <class T>
struct FillRows {
  T value;
  __device__ void operator()(T* row, std::int64_t /*token*/, std::int64_t /*head*/, std::int64_t i) const {
    row[i] = value;
  }
};
template <class T, class Work>
Status run_on_rows(const char* operation, const TensorView<T>& to, const Work& work, const Cuda& on) {
  const std::int64_t blocks = ceil_div<std::int64_t>(to.tokens * to.heads * to.dim, state_threads);
  return launch(operation, for_elements<T, Work>, {blocks, state_threads, 0}, on, to, work);
}

/// Views of equal extents, the one a copy of the other.
template <class T>
struct RowCopy {
  TensorView<const T> from;
  TensorView<T> to;

  [[nodiscard]] __host__ __device__ std::int64_t row_elements() const { return to.heads * to.dim; }
  template <int width>
  __device__ void copy(std::int64_t token, std::int64_t element) const {
    const std::int64_t head = element / to.dim;
    const std::int64_t i = element % to.dim;
    store_vector(to.row(0, token, head) + i, load_vector<width>(from.row(0, token, head) + i));
  }
  [[nodiscard]] bool takes_vectors() const {
    constexpr int each = access_bytes / static_cast<int>(sizeof(T));
    const auto aligned = [](const auto& view) { return rows_aligned(view.data, view.token_stride, view.head_stride); };
    return row_elements() == 0 || (to.dim % each == 0 && aligned(from) && aligned(to));
  }
};

/// One thread for `width` elements of a token's row of both.
template <class T, int width>
__global__ void __launch_bounds__(state_threads)
    copy_two_rows(const __grid_constant__ RowCopy<T> first, const __grid_constant__ RowCopy<T> second) {
  const std::int64_t row = first.row_elements() + second.row_elements();
  const std::int64_t element = (std::int64_t{blockIdx.x} * state_threads + threadIdx.x) * width;
  const std::int64_t token = element / row;
  const std::int64_t i = element % row;
  if (token < first.to.tokens) {
    if (i < first.row_elements()) {
      first.template copy<width>(token, i);
    } else {
      second.template copy<width>(token, i - first.row_elements());
    }
  }
}
template <class T>
Status copy_two_rows_of(const RowCopy<T>& first, const RowCopy<T>& second, const Cuda& on) {
  constexpr int each = access_bytes / static_cast<int>(sizeof(T));
  const bool vectors = first.takes_vectors() && second.takes_vectors();
  const std::int64_t elements = first.to.tokens * (first.row_elements() + second.row_elements());
  const std::int64_t blocks = ceil_div<std::int64_t>(elements, std::int64_t{state_threads} * (vectors ? each : 1));
  return launch("copy_rows", vectors ? copy_two_rows<T, each> : copy_two_rows<T, 1>, {blocks, state_threads, 0}, on, first,
                second);
}

/// Caches of a window that hold the rows of halos: elements [i, i + 1) · `each` of one head's. Rows are those of tokens
/// counts[b], counts[b] + 1, … of a sequence, at most as many as the cache has; the rest of it is 0.
template <class Config>
struct StoreRings {
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  static constexpr int each = access_bytes / static_cast<int>(sizeof(Element));
  static constexpr std::int64_t numbers = Format::ring_elements / each;
  static_assert(Format::ring_elements % each == 0 && Format::count_offset % each == 0 &&
                sizeof(std::int64_t) <= access_bytes);

  TensorView<const Element> keys;
  TensorView<const Element> values;
  const std::int32_t* offsets;
  const std::int32_t* counts;  // in halves
  StatePoolView<Format> rings;
  typename Config::Rotary rotary;

  __device__ void operator()(std::int64_t b, std::int64_t h, std::int64_t i) const {
    const std::int64_t first = i * each;
    const std::int64_t before = joined(counts[2 * b], counts[2 * b + 1]);
    const std::int64_t halo = offsets[b + 1] - offsets[b];
    Vector<Element, each> numbers_of_head{};
    if (first == Format::count_offset) {
      const std::int64_t count = legal_count(before + halo, Config::left_window);
      std::memcpy(&numbers_of_head, &count, sizeof count);
    } else {
#pragma unroll
      for (int c = 0; c < each; ++c) {
        numbers_of_head[c] = element(first + c, b, h, before, halo);
      }
    }
    store_vector(rings.head(b, h) + first, numbers_of_head);
  }

 private:
  [[nodiscard]] __device__ Element element(std::int64_t i, std::int64_t b, std::int64_t h, std::int64_t before,
                                           std::int64_t halo) const {
    constexpr std::int64_t key_elements = std::int64_t{Format::rows} * Config::head_dim;
    constexpr std::int64_t value_elements = std::int64_t{Format::rows} * Config::value_dim;
    const bool is_value = i >= Format::value_offset;
    const std::int64_t at = is_value ? i - Format::value_offset : i;
    if (at >= (is_value ? value_elements : key_elements)) {
      return {};
    }
    const int dim = is_value ? Config::value_dim : Config::head_dim;
    const std::int64_t row = at / dim - ring_row(before, Config::left_window);
    const std::int64_t token = row < 0 ? row + Format::rows : row;
    const int column = static_cast<int>(at % dim);
    if (token >= halo) {
      return {};
    }
    return is_value ? values.row(0, offsets[b] + token, h)[column]
                    : convert<Element>(rotated_value(rotary, keys.row(0, offsets[b] + token, h), before + token, column));
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
