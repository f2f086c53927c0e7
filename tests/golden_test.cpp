// SPDX-License-Identifier: Apache-2.0
// Outputs, states and steps of the authors' own modules, run in float64 on inputs that float32 holds exactly.
#include <doctest/doctest.h>

#include <Eigen/Core>
#include <cstdlib>
#include <jrt/state_exchange.hpp>
#include <string>

#include "support/backend.hpp"
#include "support/problem.hpp"
#include "support/safetensors.hpp"

namespace jrt::test {
namespace {

constexpr double bound = 1e-12;

std::string data_file(const std::string& name) {
  const char* const directory = std::getenv("JRT_TEST_DATA");
  return std::string(directory != nullptr ? directory : JRT_TEST_DATA_DEFAULT) + "/" + name + ".safetensors";
}

/// A (B, H, N, d) tensor of a file in the tests' (B, N, H, d) order.
Tensor<double> tensor_bhnd(const support::SafeTensors& file, const std::string& name) {
  const auto& stored = file.tensor(name);
  const auto numbers = stored.as<double>();
  Tensor<double> tensor{{stored.shape.at(0), stored.shape.at(2), stored.shape.at(1), stored.shape.at(3)},
                        std::vector<double>(numbers.size())};
  std::size_t i = 0;
  for (std::int64_t b = 0; b < tensor.shape.batch; ++b) {
    for (std::int64_t h = 0; h < tensor.shape.heads; ++h) {
      for (std::int64_t t = 0; t < tensor.shape.tokens; ++t) {
        for (std::int64_t c = 0; c < tensor.shape.dim; ++c, ++i) {
          tensor.at(b, t, h, c) = numbers[i];
        }
      }
    }
  }
  return tensor;
}

/// The states in the authors' dense order.
template <class Config>
std::pair<std::vector<double>, std::vector<double>> dense(const StateNumbers<Config>& states, std::int64_t slots,
                                                          std::int64_t heads) {
  using Format = StateFormatOf<Config>;
  constexpr std::int64_t rows = DenseMap<typename Config::FeatureMap>::feature_dim;
  StateNumbers<Config> copy = states;
  std::vector<double> sums(static_cast<std::size_t>(slots * heads * rows * Config::value_dim));
  std::vector<double> normaliser(static_cast<std::size_t>(slots * heads * rows));
  JRT_REQUIRE_OK(export_states<Format>({view_pool<Format>(copy.data(), slots, heads)},
                                       view_dense_states<Format>(sums.data(), normaliser.data(), heads), slots, Cpu{}));
  return {sums, normaliser};
}

/// Prompt, final state, decode steps and the state after them, of one file.
template <class Backend, class Element, int d, int dv>
void check_file(const std::string& name, double tolerance) {
  using Config = PrefixLinearAttention<Element, d, dv>;
  CAPTURE(name);
  const support::SafeTensors file(data_file(name));
  const std::int64_t prompt = file.number("prompt");
  const std::int64_t steps = file.number("steps");
  Problem<Config> all;
  all.query = converted<Element>(tensor_bhnd(file, "q"));
  all.key = converted<Element>(tensor_bhnd(file, "k"));
  all.value = converted<Element>(tensor_bhnd(file, "v"));
  REQUIRE(all.query.shape.dim == d);
  REQUIRE(all.value.shape.dim == dv);
  REQUIRE(all.query.shape.tokens == prompt + steps);
  const std::int64_t slots = all.query.shape.batch;
  const std::int64_t heads = all.query.shape.heads;

  Problem<Config> beginning;
  beginning.query = token_slice(all.query, 0, prompt);
  beginning.key = token_slice(all.key, 0, prompt);
  beginning.value = token_slice(all.value, 0, prompt);
  beginning.key_encoder = converted<Element>(tensor_bhnd(file, "k_enc"));
  beginning.value_encoder = converted<Element>(tensor_bhnd(file, "v_enc"));
  REQUIRE(beginning.key_encoder.shape.tokens == (steps > 0 ? file.number("prefix") : beginning.key_encoder.shape.tokens));
  auto results = run_prefill<Backend>(beginning);
  CHECK(relative_error(results.output.values, tensor_bhnd(file, "y").values) <= tolerance);
  const auto [sums, normaliser] = dense<Config>(results.states, slots, heads);
  CHECK(relative_error(sums, file.tensor("kv_state").as<double>()) <= tolerance);
  CHECK(relative_error(normaliser, file.tensor("k_state").as<double>()) <= tolerance);
  if (steps > 0) {
    const auto outputs = run_decode<Backend>(all, prompt, steps, results.states);
    CHECK(relative_error(outputs.values, tensor_bhnd(file, "y_steps").values) <= tolerance);
    const auto [sums_after, normaliser_after] = dense<Config>(results.states, slots, heads);
    CHECK(relative_error(sums_after, file.tensor("kv_state_after").as<double>()) <= tolerance);
    CHECK(relative_error(normaliser_after, file.tensor("k_state_after").as<double>()) <= tolerance);
  }
}

TEST_CASE_TEMPLATE("the authors' operator: prompts, states and steps", Backend, JRT_TEST_BACKENDS) {
  check_file<Backend, double, 16, 64>("pla_d16_dv64", bound);
  check_file<Backend, double, 16, 112>("pla_d16_dv112", bound);
  check_file<Backend, double, 24, 48>("pla_d24_dv48_full_prefix", bound);
  check_file<Backend, double, 8, 32>("pla_d8_dv32_causal", bound);
  check_file<Backend, double, 16, 64>("pla_grad_d16_dv64", bound);
  check_file<Backend, double, 4, 8>("pla_grad_d4_dv8", bound);
  check_file<Backend, float, 16, 64>("pla_d16_dv64", tolerance<float>());
  check_file<Backend, float, 16, 112>("pla_d16_dv112", tolerance<float>());
}

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
  const auto output = run_prefill<CpuSerial>(problem).output;
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
