// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cub/block/block_reduce.cuh>
#include <jrt/early_start.cuh>
#include <jrt/numeric.hpp>
#include <type_traits>

#include "jrt_lm/cuda_kernels.cuh"
#include "jrt_lm/cuda_streams.cuh"
#include "jrt_lm/model_weights.hpp"
#include "jrt_lm/tiled_launch.cuh"

namespace jrt_lm {

template <class E>
inline constexpr bool has_tiled_product = std::is_same_v<E, jrt::BFloat16>;

/// The tiled products of a device, each in the tiling that is estimated to be fastest.
class TiledProducts {
 public:
  TiledProducts() {
    int device = 0;
    check_cuda(cudaGetDevice(&device), "device");
    check_cuda(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device), "device");
    exists_ = jrt::detail::cuda::kernel_exists<tiled_product_kernel<Tiling<Finish::adds, 128>>, tiled_threads>();
  }

  static std::int64_t most_square_parts(std::int64_t width) { return (width + 63) / 64; }

  /// Numbers of rows for which they have been found to be faster than cuBLASLt and kernels between its products.
  static constexpr std::int64_t least_rows = 512;
  static constexpr std::int64_t most_rows = 2048;

  /// Whether this device has products of these dimensions, and they pay: the copy engine takes rows of whole 16 bytes.
  [[nodiscard]] bool takes(std::int64_t rows, std::int64_t in, std::int64_t outputs) const {
    return exists_ && rows >= least_rows && rows <= most_rows && in % 8 == 0 && outputs % 8 == 0;
  }

  void store(const TiledOperands& of, cudaStream_t stream) const { launch_best(Stores{}, of, stream); }
  void rotate(const TiledOperands& of, cudaStream_t stream) const { launch_best(Rotates{}, of, stream); }
  void gate(const TiledOperands& of, cudaStream_t stream) const { launch_best(Gates{}, of, stream); }
  /// Returns the parts of the squares.
  std::int64_t add(const TiledOperands& of, cudaStream_t stream) const {
    const int outputs = launch_best(Adds{}, of, stream);
    return (of.outputs + outputs - 1) / outputs;
  }

  /// Calls `function(std::type_identity<tiling>{})` for all that there are.
  template <class Function>
  static void each_tiling(const Function& function) {
    const auto call = [&]<class... T>(Tilings<T...>) { (function(std::type_identity<T>{}), ...); };
    call(Stores{});
    call(Rotates{});
    call(Gates{});
    call(Adds{});
  }

 private:
  template <class... T>
  struct Tilings {};
  template <Finish finish>
  using Narrow = Tiling<finish, 128, 2>;
  using Stores = Tilings<Tiling<Finish::stores, 256>, Tiling<Finish::stores, 192>, Tiling<Finish::stores, 128>,
                         Narrow<Finish::stores>, Tiling<Finish::stores, 64, 2>>;
  using Rotates = Tilings<Tiling<Finish::rotates, 192>, Tiling<Finish::rotates, 128>, Narrow<Finish::rotates>>;
  using Gates = Tilings<Tiling<Finish::gates, 256>, Tiling<Finish::gates, 128>, Narrow<Finish::gates>>;
  using Adds = Tilings<Tiling<Finish::adds, 128>, Narrow<Finish::adds>, Tiling<Finish::adds, 64, 2>>;

  /// Cycles that a product takes, by its tiles: whole waves of blocks, in which the matrix unit takes 4 cycles for each
  /// column of a slot and copies bring some 32 bytes a cycle, and the beginning and end of a tile.
  template <class T>
  [[nodiscard]] double estimate(const TiledOperands& of) const {
    const auto divided = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
    const std::int64_t tiles = divided(of.rows, tile_rows) * divided(of.outputs, T::outputs);
    const std::int64_t waves = divided(tiles, multiprocessors_ / T::splits);
    const auto slots = static_cast<double>(divided(divided(of.in, tile_depth), T::splits));
    constexpr double multiplied = 4.0 * T::columns;
    constexpr double copied = (tile_rows + T::columns) * 128.0 / 32;
    return static_cast<double>(waves) * (slots * (multiplied > copied ? multiplied : copied) + 8.0 * T::columns) +
           (T::splits > 1 ? 3000 : 1500);
  }

  template <class First, class... Others>
  int launch_best(Tilings<First, Others...>, const TiledOperands& of, cudaStream_t stream) const {
    cudaError_t (*launch)(const TiledOperands&, int, cudaStream_t) = launch_tiled<First>;
    int outputs = First::outputs;
    double best = estimate<First>(of);
    const auto look = [&]<class T>(std::type_identity<T>) {
      if (const double its = estimate<T>(of); has_depth<T>(of) && its < best) {
        best = its;
        launch = launch_tiled<T>;
        outputs = T::outputs;
      }
    };
    (look(std::type_identity<Others>{}), ...);
    check_cuda(launch(of, multiprocessors_, stream), "launch");
    return outputs;
  }

  int multiprocessors_ = 0;
  bool exists_ = false;
};

/// The operands of a product by a Projection of the model's.
template <class Projection, class E>
TiledOperands tiled_operands(const Projection& by, const E* x, std::int64_t x_columns, std::int64_t rows,
                             std::int64_t outputs) {
  TiledOperands of;
  of.x = x;
  of.x_columns = x_columns;
  of.weight = by.weight.data();
  of.bias = by.bias.data();
  of.rows = rows;
  of.in = by.in;
  of.outputs = outputs;
  return of;
}
/// Of rows that are prepared for a norm, to contiguous rows of y.
template <class Projection, class E>
TiledOperands tiled_normed(const Projection& by, const Norm<float>& norm, const E* normed, std::int64_t rows, E* y,
                           std::int64_t outputs) {
  TiledOperands of = tiled_operands(by, normed, by.in, rows, outputs);
  of.y = y;
  of.y_columns = outputs;
  of.squares = norm.squares;
  of.square_parts = norm.square_parts;
  of.epsilon = static_cast<float>(norm.epsilon);
  return of;
}

/// The residual stream from the embedding table, and what the first norm needs of it: x weight and a row's squares. A block
/// for each row.
template <class E, class Sum>
__global__ void __launch_bounds__(row_threads)
    embed_prepared_kernel(const std::int32_t* tokens, const E* table, std::int64_t width, Sum* out, const Sum* norm_weight,
                          E* normed, Sum* squares) {
  using Reduce = cub::BlockReduce<Sum, row_threads>;
  __shared__ typename Reduce::TempStorage storage;
  jrt::await_previous_kernel();
  jrt::let_next_kernel_start();
  const std::int64_t t = blockIdx.x;
  const E* const from = table + tokens[t] * width;
  Sum sum = 0;
  for (std::int64_t c = threadIdx.x; c < width; c += row_threads) {
    const Sum x = jrt::convert<Sum>(from[c]);
    out[t * width + c] = x;
    normed[t * width + c] = jrt::convert<E>(x * norm_weight[c]);
    sum += x * x;
  }
  sum = Reduce(storage).Sum(sum);
  if (threadIdx.x == 0) {
    squares[t] = sum;
  }
}

}  // namespace jrt_lm
