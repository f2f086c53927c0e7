// SPDX-License-Identifier: Apache-2.0
// The authors' whole BaseConv module, projections included, run in float64.
#include <doctest/doctest.h>

#include <Eigen/Core>
#include <string>

#include "support/backend.hpp"
#include "support/convolution_problem.hpp"
#include "support/golden.hpp"

namespace jrt::test {
namespace {

constexpr double bound = 1e-10;

using Config = GatedConvolution<double, 3>;
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// The convolution's part of the module, and the projection behind it.
struct Module {
  support::SafeTensors file{data_file("base_conv_module")};
  ConvolutionProblem<Config> problem;

  Module() {
    const auto& shape = file.tensor("x").shape;
    const Matrix projected = applied("w.in_proj", matrix("x"));
    const std::int64_t channels = projected.cols() / 2;
    const TensorShape half{shape.at(0), shape.at(1), 1, channels};
    const auto part = [&](std::int64_t first) {
      const Matrix columns = projected.middleCols(first, channels);
      return Tensor<double>{half, std::vector<double>(columns.data(), columns.data() + columns.size())};
    };
    problem.input = part(0);
    problem.gate = part(channels);
    problem.weight = file.tensor("w.conv.conv.weight").as<double>();
  }

  Matrix matrix(const std::string& tensor) const {
    const auto numbers = file.tensor(tensor).as<double>();
    const Eigen::Index columns = file.tensor(tensor).shape.back();
    return Eigen::Map<const Matrix>(numbers.data(), static_cast<Eigen::Index>(numbers.size()) / columns, columns);
  }
  Matrix applied(const std::string& layer, const Matrix& x) const {
    Matrix y = x.lazyProduct(matrix(layer + ".weight").transpose());
    y.rowwise() += matrix(layer + ".bias").row(0);
    return y;
  }
  double error(const Tensor<double>& output) const {
    const Eigen::Index channels = output.shape.dim;
    const Matrix y = applied(
        "w.out_proj", Eigen::Map<const Matrix>(output.values.data(), output.shape.batch * output.shape.tokens, channels));
    return relative_error(std::vector<double>(y.data(), y.data() + y.size()), file.tensor("y").as<double>());
  }
};

TEST_CASE("the authors' convolution with its projections") {
  const Module module;
  CHECK(module.error(run_convolution<Simple>(module.problem).output) <= bound);
}

TEST_CASE("the same token by token") {
  const Module module;
  CarriedInputs<Config> states(static_cast<std::size_t>(module.problem.input.shape.batch * module.problem.channels() * 2));
  CHECK(module.error(run_convolution_steps<Simple>(module.problem, states)) <= bound);
}

}  // namespace
}  // namespace jrt::test
