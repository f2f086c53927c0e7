// SPDX-License-Identifier: Apache-2.0
// The authors' whole mixer, projections included, run in float64.
#include <doctest/doctest.h>

#include <Eigen/Core>
#include <algorithm>
#include <string>

#include "support/backend.hpp"
#include "support/golden.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

constexpr double bound = 1e-12;

/// The authors' whole mixer: five projections, the operator, the output projection.
template <class Config>
double module_error(const std::string& name, const std::vector<std::int32_t>& left_pads) {
  using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const support::SafeTensors file(data_file(name));
  const auto matrix = [&](const std::string& tensor) -> Matrix {
    const auto numbers = file.tensor(tensor).as<double>();
    const Eigen::Index columns = file.tensor(tensor).shape.back();
    return Eigen::Map<const Matrix>(numbers.data(), static_cast<Eigen::Index>(numbers.size()) / columns, columns);
  };
  const auto& shape = file.tensor("x").shape;
  const std::int64_t batch = shape.at(0);
  const std::int64_t tokens = shape.at(1);
  const std::int64_t heads = file.number("num_heads");
  const std::int64_t prefix = std::min(tokens, file.number("enc_length"));
  const Matrix x = matrix("x");
  const auto projected = [&](const std::string& weight) {
    const Matrix product = x * matrix(weight).transpose();
    Tensor<double> tensor{{batch, tokens, heads, product.cols() / heads}, {}};
    tensor.values.assign(product.data(), product.data() + product.size());
    return tensor;
  };
  Problem<Config> problem;
  problem.query = projected("w.proj_q.weight");
  problem.key = projected("w.proj_k.weight");
  problem.value = projected("w.proj_v.weight");
  problem.key_encoder = token_slice(projected("w.proj_k_enc.weight"), 0, prefix);
  problem.value_encoder = token_slice(projected("w.proj_v_enc.weight"), 0, prefix);
  problem.sequences.left_pads = left_pads;
  const auto output = run_prefill<Simple>(problem).output;
  const Matrix y = Eigen::Map<const Matrix>(output.values.data(), batch * tokens, heads * Config::value_dim) *
                   matrix("w.out_proj.weight").transpose();
  return relative_error(std::vector<double>(y.data(), y.data() + y.size()), file.tensor("y").as<double>());
}

struct Upstream : PrefixLinearAttention<double, 16, 16> {
  using Padding = ZeroKeyPadding;
};

TEST_CASE("the authors' mixer with its projections") {
  CHECK(module_error<PrefixLinearAttention<double, 16, 16>>("pla_module", {}) <= bound);
}

TEST_CASE("the authors' mixer with their treatment of padded positions") {
  const support::SafeTensors file(data_file("pla_module_left_pad_upstream"));
  const auto mask = file.tensor("mask").as<std::int64_t>();
  const std::int64_t tokens = file.tensor("mask").shape.at(1);
  std::vector<std::int32_t> pads;
  for (std::int64_t b = 0; b < file.tensor("mask").shape.at(0); ++b) {
    std::int32_t pad = 0;
    while (pad < tokens && mask.at(static_cast<std::size_t>(b * tokens + pad)) == 0) {
      ++pad;
    }
    pads.push_back(pad);
  }
  CHECK(module_error<Upstream>("pla_module_left_pad_upstream", pads) <= bound);
  // The default, which drops padded positions, is deliberately something else.
  CHECK(module_error<PrefixLinearAttention<double, 16, 16>>("pla_module_left_pad_upstream", pads) > 0.01);
}

}  // namespace
}  // namespace jrt::test
