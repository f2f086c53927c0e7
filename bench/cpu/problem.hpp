// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <jrt/mixer/linear_attention.hpp>
#include <jrt/prefill.hpp>
#include <jrt/tensor_view.hpp>
#include <memory>
#include <new>
#include <random>

namespace bench {

/// A tensor of normal random numbers in (batch, token, head, dim) order, aligned to a cache line as engines align theirs.
template <class Element>
class Tensor {
 public:
  Tensor(const jrt::TensorShape& shape, unsigned seed)
      : shape_(shape), size_(size_of(shape)), data_(new (alignment) Element[size_]) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < size_; ++i) {
      data_[i] = jrt::convert<Element>(normal(generator));
    }
  }

  jrt::TensorView<Element> view() { return jrt::view_bthd(data_.get(), shape_); }

 private:
  static std::size_t size_of(const jrt::TensorShape& shape) {
    return static_cast<std::size_t>(shape.batch * shape.tokens * shape.heads * shape.dim);
  }

  static constexpr std::align_val_t alignment{64};
  struct Free {
    void operator()(Element* data) const { ::operator delete[](data, alignment); }
  };

  jrt::TensorShape shape_;
  std::size_t size_;
  std::unique_ptr<Element[], Free> data_;
};

/// Tensors of one prefill.
template <class Config>
struct Problem {
  using Element = typename Config::Element;
  static constexpr int d = Config::FeatureMap::input_dim;
  static constexpr int dv = Config::value_dim;

  Problem(std::int64_t batch, std::int64_t tokens, std::int64_t prefix, std::int64_t heads)
      : query({batch, tokens, heads, d}, 1),
        key({batch, tokens, heads, d}, 2),
        value({batch, tokens, heads, dv}, 3),
        key_encoder({batch, prefix, heads, d}, 4),
        value_encoder({batch, prefix, heads, dv}, 5),
        output({batch, tokens, heads, dv}, 6) {}

  Tensor<Element> query;
  Tensor<Element> key;
  Tensor<Element> value;
  Tensor<Element> key_encoder;
  Tensor<Element> value_encoder;
  Tensor<Element> output;
};

/// Useful operations per token and head, and per encoder token and head: state update and query with the packed state and
/// its normaliser column. What a kernel computes besides (pairs inside a chunk, features) does not count.
template <class Config>
constexpr double operations_per_token() {
  return 2.0 * 2.0 * Config::FeatureMap::feature_dim * (Config::value_dim + 1);
}
template <class Config>
constexpr double operations_per_prefix_token() {
  return operations_per_token<Config>() / 2;
}

}  // namespace bench
