// SPDX-License-Identifier: Apache-2.0
// The authors' whole sliding-window mixer, projections and rotary embedding included.
#include <doctest/doctest.h>

#include <Eigen/Core>
#include <string>

#include "support/backend.hpp"
#include "support/golden.hpp"
#include "support/window_problem.hpp"

namespace jrt::test {
namespace {

using Config = Turned<double, 16, 4>;
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr double bound = 1e-10;

struct Module {
  support::SafeTensors file{data_file("sliding_attention_module")};
  WindowProblem<Config> problem;

  /// One projection to queries, keys and values, each of all heads, one after the other.
  Module() {
    const auto& shape = file.tensor("x").shape;
    const std::int64_t heads = file.number("num_heads");
    REQUIRE(file.number("left") == Config::left_window);
    REQUIRE(left_window_of(static_cast<int>(file.number("window_size"))) == Config::left_window);
    REQUIRE(file.number("rotary_dim") == Config::head_dim);
    const Matrix projected = matrix("x") * matrix("w.Wqkv.weight").transpose();
    const Eigen::Index width = projected.cols() / 3;
    REQUIRE(width == heads * Config::head_dim);
    Eigen::Index first = 0;
    for (auto* tensor : {&problem.query, &problem.key, &problem.value}) {
      const Matrix part = projected.middleCols(first, width);
      *tensor = {{shape.at(0), shape.at(1), heads, Config::head_dim}, {part.data(), part.data() + part.size()}};
      first += width;
    }
  }

  [[nodiscard]] Matrix matrix(const std::string& name) const {
    const auto numbers = file.tensor(name).as<double>();
    const Eigen::Index columns = file.tensor(name).shape.back();
    return Eigen::Map<const Matrix>(numbers.data(), static_cast<Eigen::Index>(numbers.size()) / columns, columns);
  }

  [[nodiscard]] double error(const Tensor<double>& output) const {
    const Eigen::Index rows = output.shape.batch * output.shape.tokens;
    const Matrix y = (Eigen::Map<const Matrix>(output.values.data(), rows, output.shape.heads * Config::value_dim) *
                      matrix("w.out_proj.weight").transpose())
                         .rowwise() +
                     matrix("w.out_proj.bias").row(0);
    return relative_error(std::vector<double>(y.data(), y.data() + y.size()), file.tensor("y").as<double>());
  }
};

TEST_CASE("the authors' sliding-window mixer with its projections") {
  const Module module;
  CHECK(module.error(run_window<Simple>(module.problem).output) <= bound);
}

TEST_CASE("the authors' sliding-window mixer, token by token") {
  const Module module;
  const auto& problem = module.problem;
  auto caches = empty_caches<Config>(problem.sequence_count(), problem.key.shape.heads);
  CHECK(module.error(step_window<Simple>(problem, 0, problem.tokens(), caches)) <= bound);
}

}  // namespace
}  // namespace jrt::test
