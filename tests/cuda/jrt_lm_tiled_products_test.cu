// SPDX-License-Identifier: Apache-2.0
// jrt_lm's matrix products of many rows on Hopper GPUs, with all that is part of them, against sums in double over the same
// rounded numbers.
#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <jrt/cuda/gated_convolution.cuh>
#include <type_traits>
#include <vector>

#include "cuda/jrt_lm_products.cuh"
#include "jrt_lm/convolved_tiles.cuh"

namespace jrt_lm::test {
namespace {

/// A tiled product with everything that it can be told to do.
template <class T>
void check_tiled(std::int64_t rows, std::int64_t in, std::int64_t outputs, bool with_bias, bool with_norm) {
  using E = jrt::BFloat16;
  using Out = std::conditional_t<T::finish == Finish::adds, float, E>;
  CAPTURE(T::columns);
  CAPTURE(T::splits);
  CAPTURE(rows);
  CAPTURE(in);
  CAPTURE(outputs);
  Problem<E> problem(rows, in, T::finish == Finish::gates ? 2 * outputs : outputs);
  CudaDevice& device = problem.device;
  const auto by = problem.projection<Out>(with_bias);
  const auto x = problem.x.on(device);
  const Numbers<float> before(rows * outputs, 2, 6);
  const Numbers<float> weights(outputs, 1, 7);
  auto stream = before.on(device);
  const auto norm_weight = weights.on(device);
  const std::int64_t parts = T::finish == Finish::adds ? (outputs + T::outputs - 1) / T::outputs : 3;
  std::vector<float> given(rows * parts);
  for (std::size_t i = 0; i < given.size(); ++i) {
    given[i] = static_cast<float>(i % 7) + 0.5F;
  }
  CudaDevice::Array<float> squares(device, rows * parts);
  squares.upload(given);
  const std::vector<E> unwritten(rows * outputs, jrt::convert<E>(std::nan("")));
  CudaDevice::Array<E> y(device, rows * outputs);
  y.upload(unwritten);
  TiledOperands of;
  of.x = x.data();
  of.x_columns = in;
  of.weight = by.weight.data();
  of.bias = by.bias.data();
  of.rows = rows;
  of.in = in;
  of.outputs = outputs;
  of.y = y.data();
  of.y_columns = outputs;
  of.epsilon = 0.5F;
  if (T::finish == Finish::adds) {
    of.stream = stream.data();
    of.stream_columns = outputs;
    of.norm_weight = with_norm ? norm_weight.data() : nullptr;
    of.new_squares = squares.data();
  } else if (with_norm) {
    of.squares = squares.data();
    of.square_parts = parts;
  }
  const CudaStream own = make_stream();
  device.synchronize();
  check_cuda(launch_tiled<T>(of, 132, own.get()), "launch");
  check_cuda(cudaStreamSynchronize(own.get()), "product");
  // Numbers of a product without its bias, which the norm does not divide.
  auto product = problem.product(problem.x.exact, false);
  const auto normalised = [&](std::int64_t r, std::int64_t o) {
    double squared = 0;
    for (std::int64_t i = 0; i < parts; ++i) {
      squared += given[r * parts + i];
    }
    const double factor = with_norm ? 1 / std::sqrt(squared / static_cast<double>(in) + 0.5) : 1;
    return factor * product[r * problem.out + o] + (with_bias ? problem.bias.exact[o] : 0);
  };
  std::vector<double> expected;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t o = 0; o < outputs; ++o) {
      if constexpr (T::finish == Finish::adds) {
        expected.push_back(before.exact[r * outputs + o] + product[r * outputs + o] +
                           (with_bias ? problem.bias.exact[o] : 0));
      } else if constexpr (T::finish == Finish::gates) {
        const double gate = normalised(r, outputs + o);
        expected.push_back(normalised(r, o) * gate / (1 + std::exp(-gate)));
      } else {
        expected.push_back(normalised(r, o));
      }
    }
  }
  if constexpr (T::finish == Finish::adds) {
    CHECK(relative_error(stream.download(rows * outputs), expected) <= 2e-6);
    if (!with_norm) {
      CHECK(std::isnan(jrt::convert<double>(y.download(1)[0])));
      return;
    }
    std::vector<double> sums(rows * parts);
    for (std::int64_t i = 0; i < rows * outputs; ++i) {
      sums[i / outputs * parts + i % outputs / T::outputs] += expected[i] * expected[i];
      expected[i] *= weights.exact[i % outputs];
    }
    CHECK(relative_error(squares.download(rows * parts), sums) <= 4e-6);
  }
  CHECK(relative_error(y.download(rows * outputs), expected) <= rounding<E>);
}

template <class T>
void check_tiling() {
  if constexpr (T::finish != Finish::rotates) {
    check_tiled<T>(1, 64 * T::splits, 64, true, true);
    check_tiled<T>(77, 72, 200, false, true);
    check_tiled<T>(128, 256, 256, true, false);
    check_tiled<T>(300, 200, 328, true, true);
  }
}

TEST_CASE("tiled products: each way of dividing them, with norms, gates and additions, over dimensions that are no tiles") {
  if (!TiledProducts().takes(TiledProducts::least_rows, 64, 64)) {
    return;  // not a Hopper GPU
  }
  TiledProducts::each_tiling([]<class T>(std::type_identity<T>) { check_tiling<T>(); });
}

TEST_CASE("a depth of one slot of the ring is not divided") {
  TiledOperands of;
  of.in = tile_depth;
  CHECK(has_depth<Tiling<Finish::stores, 128>>(of));
  CHECK_FALSE(has_depth<Tiling<Finish::stores, 128, 2>>(of));
  CHECK(launch_tiled<Tiling<Finish::stores, 128, 2>>(of, 132, nullptr) == cudaErrorInvalidValue);
  of.in = tile_depth + 1;
  CHECK(has_depth<Tiling<Finish::stores, 128, 2>>(of));
}

TEST_CASE("tiled products of more tiles than multiprocessors") {
  if (TiledProducts().takes(TiledProducts::least_rows, 64, 64)) {
    check_tiled<Tiling<Finish::adds, 128>>(2100, 136, 1288, true, true);
    check_tiled<Tiling<Finish::gates, 256>>(2100, 136, 1288, true, true);
    check_tiled<Tiling<Finish::stores, 192>>(2100, 136, 2056, true, true);
  }
}

TEST_CASE("NaN in a row stays in the row, through the residual stream, the norm and the gates") {
  using E = jrt::BFloat16;
  const std::int64_t rows = 140;
  const std::int64_t width = 128;
  Problem<E> problem(rows, width, width);
  CudaDevice& device = problem.device;
  const auto by = problem.projection<float>(true);
  if (!TiledProducts().takes(TiledProducts::least_rows, width, width)) {
    return;
  }
  auto numbers = problem.x.stored;
  numbers[70 * width + 3] = jrt::convert<E>(std::nan(""));
  CudaDevice::Array<E> x(device, rows * width);
  x.upload(numbers);
  auto stream = Numbers<float>(rows * width, 2, 6).on(device);
  const auto norm_weight = Numbers<float>(width, 1, 7).on(device);
  CudaDevice::Array<E> normed(device, rows * width);
  CudaDevice::Array<float> squares(device, rows * CudaDevice::most_square_parts(width));
  Norm<float> norm{norm_weight.data(), 1e-5, squares.data()};
  norm.square_parts =
      device.multiply_add_prepared(by, x.data(), width, rows, stream.data(), norm.weight, normed.data(), squares.data());
  const auto inner = problem.projection<E>(true);
  CudaDevice::Array<E> gated(device, rows * width);
  const std::int64_t columns = device.multiply_normed_gated(inner, norm, stream.data(), rows, normed.data(), gated.data());
  const auto y = gated.download(rows * columns);
  for (std::int64_t i = 0; i < rows * columns; ++i) {
    REQUIRE(std::isnan(jrt::convert<double>(y[i])) == (i / columns == 70));
  }
}

TEST_CASE("embedding prepares the residual stream for a norm") {
  using E = jrt::BFloat16;
  const std::int64_t width = 200;
  CudaDevice device{ModelOptions{}};
  const Numbers<E> table(5 * width, 1, 1);
  const Numbers<float> weights(width, 1, 2);
  const auto on_device = table.on(device);
  const auto norm_weight = weights.on(device);
  const std::vector<std::int32_t> tokens{3, 0, 4, 3};
  CudaDevice::Array<std::int32_t> list(device, 4);
  list.upload(tokens);
  CudaDevice::Array<float> stream(device, 4 * width);
  CudaDevice::Array<E> normed(device, 4 * width);
  CudaDevice::Array<float> squares(device, 4);
  device.embed_prepared(list.data(), 4, on_device.data(), width, stream.data(), norm_weight.data(), normed.data(),
                        squares.data());
  std::vector<double> rows;
  std::vector<double> scaled;
  std::vector<double> sums(4);
  for (std::int64_t i = 0; i < 4 * width; ++i) {
    rows.push_back(table.exact[tokens[i / width] * width + i % width]);
    scaled.push_back(rows.back() * weights.exact[i % width]);
    sums[i / width] += rows.back() * rows.back();
  }
  CHECK(relative_error(stream.download(4 * width), rows) == 0);
  CHECK(relative_error(normed.download(4 * width), scaled) <= rounding<E>);
  CHECK(relative_error(squares.download(4), sums) <= 1e-6);
}

/// The rotation in the product against the one behind it.
void check_turned(std::int64_t rows, std::int64_t in, std::int64_t heads, std::int64_t turned) {
  CAPTURE(rows);
  CAPTURE(heads);
  using E = jrt::BFloat16;
  Problem<E> problem(rows, in, heads * 64);
  CudaDevice& device = problem.device;
  const auto by = problem.projection<E>(true);
  const auto x = problem.x.on(device);
  std::vector<float> given(static_cast<std::size_t>(2 * rows));
  std::vector<std::int32_t> numbers;
  for (std::int64_t row = 0; row < rows; ++row) {
    given[2 * row] = static_cast<float>(row % 5) + 20;
    given[2 * row + 1] = 1;
    numbers.push_back(static_cast<std::int32_t>(1000 * row + 7));
  }
  CudaDevice::Array<float> squares(device, 2 * rows);
  squares.upload(given);
  CudaDevice::Array<std::int32_t> positions(device, rows);
  positions.upload(numbers);
  const jrt::RotaryHalves<64> rotary(1e4);
  const Norm<float> norm{nullptr, 0.5, squares.data(), 2};
  CudaDevice::Array<E> together(device, rows * heads * 64);
  CudaDevice::Array<E> apart(device, rows * heads * 64);
  device.multiply_normed_rotated(by, norm, static_cast<const float*>(nullptr), rows, x.data(), together.data(), rotary,
                                 positions.data(), turned);
  device.multiply_prepared(by, norm, x.data(), rows, apart.data());
  device.rotate(rotary, positions.data(), rows, apart.data(), heads * 64, turned);
  std::vector<double> expected;
  for (const E number : apart.download(rows * heads * 64)) {
    expected.push_back(jrt::convert<double>(number));
  }
  CHECK(relative_error(together.download(rows * heads * 64), expected) <= 4e-3);
}

TEST_CASE("the rotation in a tiled product is the rotation after it") {
  if (!TiledProducts().takes(TiledProducts::least_rows, 64, 64)) {
    return;
  }
  check_turned(17, 64, 3, 2);
  check_turned(130, 72, 6, 4);
  check_turned(700, 64, 48, 32);
  check_turned(1030, 64, 17, 17);
}

/// The product and the library's convolution one after the other, and both in one; `tokens` of the rows are the prompt's.
void check_convolved(std::int64_t rows, std::int64_t in, std::int64_t channels, std::int32_t tokens, bool continues,
                     bool with_bias) {
  CAPTURE(rows);
  CAPTURE(channels);
  CAPTURE(tokens);
  using E = jrt::BFloat16;
  using Config = jrt::GatedConvolution<E, 3>;
  using Format = jrt::StateFormatOf<Config>;
  Problem<E> problem(rows, in, 2 * channels);
  CudaDevice& device = problem.device;
  const auto by = problem.projection<E>(with_bias);
  const auto x = problem.x.on(device);
  std::vector<float> given(static_cast<std::size_t>(rows));
  for (std::size_t i = 0; i < given.size(); ++i) {
    given[i] = static_cast<float>(i % 5) + 20;
  }
  CudaDevice::Array<float> squares(device, rows);
  squares.upload(given);
  const auto filter = Numbers<E>(channels * 3, 0.3, 8).on(device);
  const auto filter_bias = Numbers<E>(channels, 0.3, 9).on(device);
  CudaDevice::Array<std::int32_t> offsets(device, 2);
  offsets.upload(std::vector<std::int32_t>{0, tokens});
  CudaDevice::Array<std::uint8_t> has_state(device, 1);
  has_state.upload(std::vector<std::uint8_t>{static_cast<std::uint8_t>(continues)});
  const Numbers<E> carried(2 * channels, 1, 10);
  auto state_apart = carried.on(device);
  auto state_together = carried.on(device);
  const auto states = [&](const CudaDevice::Array<E>& of) {
    return jrt::StateSlots<Format>{jrt::view_pool<Format>(of.data(), 1, channels)};
  };
  CudaDevice::Array<E> projected(device, rows * 2 * channels);
  CudaDevice::Array<E> apart(device, rows * channels);
  CudaDevice::Array<E> together(device, rows * channels);
  const auto view = [&](const E* data, std::int64_t columns) {
    return jrt::TensorView<const E>{data, 1, rows, 1, channels, rows * columns, columns, channels};
  };
  // Apart.
  const Norm<float> norm{nullptr, 0.5, squares.data(), 1};
  device.multiply_prepared(by, norm, x.data(), rows, projected.data());
  jrt::PrefillArgs<Config> args;
  args.input = view(projected.data(), 2 * channels);
  args.gate = view(projected.data() + channels, 2 * channels);
  args.output = {apart.data(), 1, rows, 1, channels, rows * channels, channels, channels};
  args.weight = filter.data();
  args.bias = filter_bias.data();
  args.sequences.count = 1;
  args.sequences.cu_seqlens = offsets.data();
  args.sequences.max_tokens = rows;
  args.initial_state = states(state_apart);
  args.final_state = args.initial_state;
  args.has_initial_state = has_state.data();
  const jrt::Status status = jrt::prefill(args, {}, device.execution());
  REQUIRE_MESSAGE(status.ok(), status.c_str());
  // Together.
  StepProjection<E> projection;
  projection.rows = rows;
  projection.in = in;
  projection.norm_epsilon = 0.5;
  projection.weight = by.weight.data();
  projection.bias = by.bias.data();
  projection.normed = x.data();
  projection.squares = squares.data();
  projection.square_parts = 1;
  ConvolutionTensors<E> tensors;
  tensors.output = args.output;
  tensors.output.data = together.data();
  tensors.weight = filter.data();
  tensors.bias = filter_bias.data();
  MixerCall call;
  call.sequences = args.sequences;
  call.continues = has_state.data();
  CudaDevice::Array<std::byte> scratch;
  call.workspace = [&](std::size_t bytes) {
    scratch = {device, static_cast<std::int64_t>(bytes)};
    return jrt::Workspace{scratch.data(), bytes};
  };
  check_cuda(launch_convolved_tiles<Config>(projection, tensors, states(state_together), call, device.execution()),
             "launch");
  const auto in_double = [](const std::vector<E>& numbers) {
    std::vector<double> exact;
    for (const E number : numbers) {
      exact.push_back(jrt::convert<double>(number));
    }
    return exact;
  };
  CHECK(relative_error(together.download(tokens * channels), in_double(apart.download(tokens * channels))) <= 4e-3);
  CHECK(relative_error(state_together.download(2 * channels), in_double(state_apart.download(2 * channels))) == 0);
}

TEST_CASE("the convolution behind a tiled product is the convolution after it, over edges of tiles and from a state") {
  if (!TiledProducts().takes(TiledProducts::least_rows, 64, 64)) {
    return;
  }
  for (const bool continues : {false, true}) {
    check_convolved(300, 64, 64, 300, continues, true);
    check_convolved(272, 72, 200, 259, continues, false);
    check_convolved(2048, 64, 1288, 1920, continues, true);
    for (const std::int32_t tokens : {1, 2, 3, 128, 129, 130}) {
      check_convolved(256, 64, 72, tokens, continues, true);
    }
  }
}

}  // namespace
}  // namespace jrt_lm::test
