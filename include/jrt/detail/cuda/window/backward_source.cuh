// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_pipeline.h>

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/window/backward_layout.cuh"
#include "jrt/detail/cuda/window/sequence.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/plan/window_range.hpp"
#include "jrt/detail/shared/window/backward_call.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The rows of a block of backward_tiles.cuh, in the views and in shared memory, where all threads of the block load them.
/// Tokens are counted in 32 bits, for registers are few.
template <WindowConfig Config, bool of_keys>
struct WindowBackwardSource {
  using Layout = WindowBackwardLayout<Config>;
  using Element = typename Config::Element;
  using Call = WindowBackwardCall<Config>;
  using RowSums = typename Layout::RowSums;
  static constexpr int tile = Layout::tile;
  static constexpr int left = Config::left_window;

  const Call& call;
  RowSums* all_row_sums;  // [batch][query heads][tokens]
  const SequenceSpan& span;
  std::int64_t head;    // of the own rows
  int first;            // token of the first own row; negative for left pads
  int tokens;           // of the sequence
  int first_other = 0;  // of the tokens that the window joins to the own rows
  int tiles = 0;        // of them
  Element* shared;
  RowSums* shared_sums;

  __device__ WindowBackwardSource(const Call& of, RowSums* row_sums, const SequenceSpan& sequence, std::int64_t own_head,
                                  std::int64_t first_row, std::byte* memory)
      : call(of),
        all_row_sums(row_sums),
        span(sequence),
        head(own_head),
        first(static_cast<int>(first_row - sequence.left_pad)),
        tokens(static_cast<int>(sequence.tokens - sequence.left_pad)),
        shared(reinterpret_cast<Element*>(memory)),
        shared_sums(reinterpret_cast<RowSums*>(memory + sizeof(Element) * Layout::sums_offset)) {
    const int count = larger(smaller(tile, tokens - first), 0);
    const TokenRange others = of_keys ? queries_of_keys(first, count, left, tokens) : keys_in_window(first, count, left, 0);
    first_other = larger(static_cast<int>(others.begin), 0);
    tiles = ceil_div(larger(static_cast<int>(others.end) - first_other, 0), tile);
  }

  /// Tiles of other rows: those of all query heads for keys.
  [[nodiscard]] __device__ int steps() const { return of_keys ? tiles * static_cast<int>(call.group()) : tiles; }
  /// First token of the i-th of them; those of one head come after those of another.
  [[nodiscard]] __device__ int other_token(int i) const { return first_other + i % tiles * tile; }
  [[nodiscard]] __device__ bool is_token(int token) const { return token >= 0 && token < tokens; }
  [[nodiscard]] __device__ std::int64_t view_token(int token) const { return span.first_token + span.left_pad + token; }
  [[nodiscard]] __device__ RowSums* row_sums(std::int64_t query_head, int token) const {
    return all_row_sums + (span.batch_row * call.query.heads + query_head) * call.query.tokens + view_token(token);
  }

  [[nodiscard]] __device__ Element* own_heads() const { return shared; }
  [[nodiscard]] __device__ Element* own_values() const { return shared + tile * Layout::head_stride; }
  [[nodiscard]] __device__ RowSums* own_sums() const { return shared_sums; }
  [[nodiscard]] __device__ Element* other_heads(int stage) const { return shared + (1 + stage) * Layout::pair_elements; }
  [[nodiscard]] __device__ Element* other_values(int stage) const {
    return other_heads(stage) + tile * Layout::head_stride;
  }
  [[nodiscard]] __device__ RowSums* other_sums(int stage) const { return shared_sums + (1 + stage) * tile; }

  /// Issues the loads of the own rows.
  __device__ void fetch_own() const {
    fetch_rows<Config::head_dim>(own_heads(), of_keys ? call.key : call.query, head, first);
    fetch_rows<Config::value_dim>(own_values(), of_keys ? call.value : call.output_gradient, head, first);
    __pipeline_commit();
  }

  /// Issues the loads of the i-th of `steps` tiles of other rows.
  __device__ void fetch(int i, int steps) const {
    if (i < steps) {
      const int stage = i % Layout::stages;
      const int token = other_token(i);
      const std::int64_t of_head = of_keys ? head * call.group() + i / tiles : head / call.group();
      fetch_rows<Config::head_dim>(other_heads(stage), of_keys ? call.query : call.key, of_head, token);
      fetch_rows<Config::value_dim>(other_values(stage), of_keys ? call.output_gradient : call.value, of_head, token);
      if (of_keys && threadIdx.x < tile) {
        const int own = token + static_cast<int>(threadIdx.x);
        __pipeline_memcpy_async(other_sums(stage) + threadIdx.x, row_sums(of_head, own < tokens ? own : token),
                                sizeof(RowSums), own < tokens ? 0 : sizeof(RowSums));
      }
    }
    __pipeline_commit();
  }

  /// Rotates a tile of queries or keys in place, and rounds them as the forward pass does.
  __device__ void rotate_rows(Element* rows, int token) const {
    if constexpr (Config::Rotary::rotates) {
      constexpr int half = Config::Rotary::half_dim;
      for (int i = static_cast<int>(threadIdx.x); i < tile * half; i += Layout::threads) {
        Element* const number = rows + i / half * Layout::head_stride + i % half;
        float a = convert<float>(number[0]);
        float b = convert<float>(number[half]);
        rotate_pair(rotation_for<Element>(call.rotary, token + i / half, i % half), a, b);
        number[0] = convert<Element>(a);
        number[half] = convert<Element>(b);
      }
    }
  }

 private:
  /// Issues the loads of a tile of rows; 0 for rows that are no tokens.
  template <int dim>
  __device__ void fetch_rows(Element* to, const TensorView<const Element>& view, std::int64_t of_head, int token) const {
    constexpr int parts = dim / 8;
    const Element* const from = view.row(span.batch_row, view_token(token), of_head);
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < tile * parts; i += Layout::threads) {
      const int row = i / parts;
      const int column = i % parts * 8;
      const bool exists = is_token(token + row);
      __pipeline_memcpy_async(to + row * (dim + Layout::padding) + column,
                              exists ? from + row * view.token_stride + column : view.data, 16, exists ? 0 : 16);
    }
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
