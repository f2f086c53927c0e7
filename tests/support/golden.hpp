// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdlib>
#include <string>

#include "support/safetensors.hpp"
#include "support/tensor.hpp"

/// Files with outputs of the authors' own modules.
namespace jrt::test {

inline std::string data_file(const std::string& name) {
  const char* const directory = std::getenv("JRT_TEST_DATA");
  return std::string(directory != nullptr ? directory : JRT_TEST_DATA_DEFAULT) + "/" + name + ".safetensors";
}

/// A (B, H, N, d) tensor of a file in the tests' (B, N, H, d) order.
inline Tensor<double> tensor_bhnd(const support::SafeTensors& file, const std::string& name) {
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

}  // namespace jrt::test
