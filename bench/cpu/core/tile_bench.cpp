// SPDX-License-Identifier: Apache-2.0
// How fast is the register-blocked product at the sizes of a chunk, and Eigen's beside it?
#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <jrt/detail/cpu/core/tile.hpp>
#include <jrt/detail/cpu/linear/chunk.hpp>

#include "cpu/ceilings.hpp"
#include "cpu/timing.hpp"

namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr int features = 153;
constexpr int columns = 64;
constexpr int tokens = jrt::detail::cpu::chunk_tokens;
constexpr double operations = 2.0 * features * columns * tokens;

/// S (153 x 64) += Φ(k)ᵀ (153 x 48) · V (48 x 64), many times over.
template <class Product>
void state_update(benchmark::State& state, const Product& product) {
  constexpr int repeats = 200;
  const Matrix phi = Matrix::Random(tokens, 160);
  const Matrix value = Matrix::Random(tokens, columns);
  Matrix sums = Matrix::Zero(features, columns);
  bench::Shortest shortest;
  for (auto _ : state) {
    shortest.time([&] {
      for (int i = 0; i < repeats; ++i) {
        product(phi, value, sums);
      }
    });
    benchmark::DoNotOptimize(sums.data());
  }
  state.counters["of_fma_peak"] = operations * repeats / shortest.seconds() / bench::fma_peak(1);
}

void tile_state_update(benchmark::State& state) {
  state_update(state, [](const Matrix& phi, const Matrix& value, Matrix& sums) {
    jrt::detail::cpu::add_product<float>(sums.data(), columns, features, columns, {phi.data(), 1, phi.cols()},
                                         {value.data(), columns}, tokens);
  });
}
BENCHMARK(tile_state_update)->MinTime(1.0);

void eigen_state_update(benchmark::State& state) {
  state_update(state, [](const Matrix& phi, const Matrix& value, Matrix& sums) {
    sums.noalias() += phi.leftCols<features>().transpose() * value;
  });
}
BENCHMARK(eigen_state_update)->MinTime(1.0);

}  // namespace
