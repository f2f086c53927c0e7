// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <jrt/numeric.hpp>
#include <jrt/tensor_view.hpp>
#include <limits>
#include <random>
#include <utility>
#include <vector>

namespace jrt::test {

/// Values of a tensor in (batch, token, head, dim) order, wherever and however they are placed for a call.
template <class E>
struct Tensor {
  TensorShape shape;
  std::vector<E> values;

  [[nodiscard]] std::size_t index(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) const {
    return static_cast<std::size_t>(((b * shape.tokens + t) * shape.heads + h) * shape.dim + c);
  }
  E& at(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) { return values[index(b, t, h, c)]; }
  [[nodiscard]] const E& at(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) const {
    return values[index(b, t, h, c)];
  }
  friend bool operator==(const Tensor& a, const Tensor& b) {
    return a.values.size() == b.values.size() &&
           (a.values.empty() || std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(E)) == 0);
  }
};

/// tensor · factor + offset, rounded to the tensor's type.
template <class E>
void scale(Tensor<E>& tensor, float factor, float offset) {
  for (E& number : tensor.values) {
    number = convert<E>(convert<float>(number) * factor + offset);
  }
}

inline std::size_t element_count(const TensorShape& shape) {
  return static_cast<std::size_t>(shape.batch * shape.tokens * shape.heads * shape.dim);
}

/// The values where they are.
template <class E>
TensorView<E> view_of(Tensor<E>& tensor) {
  return view_bthd(tensor.values.data(), tensor.shape);
}

template <class E>
Tensor<E> zero_tensor(const TensorShape& shape) {
  return {shape, std::vector<E>(element_count(shape))};
}

template <class E>
Tensor<E> random_tensor(const TensorShape& shape, unsigned seed, double scale = 1) {
  Tensor<E> tensor{shape, std::vector<E>(element_count(shape))};
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0, scale);
  for (E& value : tensor.values) {
    value = convert<E>(normal(generator));
  }
  return tensor;
}

template <class To, class From>
Tensor<To> converted(const Tensor<From>& from) {
  Tensor<To> to{from.shape, std::vector<To>(from.values.size())};
  for (std::size_t i = 0; i < from.values.size(); ++i) {
    to.values[i] = convert<To>(from.values[i]);
  }
  return to;
}

/// Tokens [first, first + count) of every sequence.
template <class E>
Tensor<E> token_slice(const Tensor<E>& from, std::int64_t first, std::int64_t count) {
  Tensor<E> to{{from.shape.batch, count, from.shape.heads, from.shape.dim}, {}};
  for (std::int64_t b = 0; b < from.shape.batch; ++b) {
    const E* const begin = from.values.data() + from.index(b, first, 0, 0);
    to.values.insert(to.values.end(), begin, begin + count * from.shape.heads * from.shape.dim);
  }
  return to;
}

/// The tokens of `a`, then those of `b`, sequence by sequence.
template <class E>
Tensor<E> joined_tokens(const Tensor<E>& a, const Tensor<E>& b) {
  Tensor<E> both{{a.shape.batch, a.shape.tokens + b.shape.tokens, a.shape.heads, a.shape.dim}, {}};
  for (std::int64_t s = 0; s < a.shape.batch; ++s) {
    for (const auto* part : {&a, &b}) {
      const E* const begin = part->values.data() + part->index(s, 0, 0, 0);
      both.values.insert(both.values.end(), begin, begin + part->shape.tokens * a.shape.heads * a.shape.dim);
    }
  }
  return both;
}

/// Sequence `b` alone.
template <class E>
Tensor<E> batch_slice(const Tensor<E>& from, std::int64_t b) {
  Tensor<E> one{from.shape, {}};
  one.shape.batch = 1;
  const E* const begin = from.values.data() + from.index(b, 0, 0, 0);
  one.values.assign(begin, begin + element_count(one.shape));
  return one;
}

/// ‖a − b‖ / ‖b‖; not a number if anything in `a` is not.
template <class A, class B>
double relative_error(const std::vector<A>& a, const std::vector<B>& b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const auto x = convert<double>(a.at(i));
    const auto y = convert<double>(b[i]);
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

/// The specified bounds on ‖y − y64‖/‖y64‖.
template <class E>
constexpr double tolerance() {
  if constexpr (std::is_same_v<E, double>) {
    return 1e-12;
  } else if constexpr (std::is_same_v<E, float>) {
    return 2e-6;
  } else if constexpr (std::is_same_v<E, Half>) {
    return 1e-3;
  } else {
    return 5e-3;
  }
}

/// The specified bounds on ‖g − g64‖/‖g64‖ of gradients.
template <class E>
constexpr double gradient_tolerance() {
  if constexpr (std::is_same_v<E, double>) {
    return 1e-10;
  } else if constexpr (std::is_same_v<E, float>) {
    return 5e-6;
  } else if constexpr (std::is_same_v<E, Half>) {
    return 2e-3;
  } else {
    return 1e-2;
  }
}

template <class E>
E poison() {
  if constexpr (std::is_floating_point_v<E>) {
    return std::numeric_limits<E>::quiet_NaN();
  } else {
    E nan;
    nan.bits = 0x7fff;
    return nan;
  }
}

/// How a tensor lies in memory.
enum class Layout {
  bthd,    ///< contiguous (batch, token, head, dim), at an aligned address
  bhtd,    ///< contiguous (batch, head, token, dim), likewise
  packed,  ///< heads in the middle of a wider projection, like k in a packed QKV tensor, at an odd offset
  spaced,  ///< gaps after every row, token and sequence, at an odd offset
};

inline constexpr Layout all_layouts[] = {Layout::bthd, Layout::bhtd, Layout::packed, Layout::spaced};

/// The same in numbers: element (b, t, h, c) lies at offset + b · batch_stride + t · token_stride + h · head_stride + c.
struct Placement {
  std::int64_t offset = 0;
  std::int64_t batch_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};

inline constexpr std::int64_t aligned_offset = 16;  // in elements, and also kept free behind the last one

inline Placement placement_of(const TensorShape& shape, Layout layout) {
  const auto [batch, tokens, heads, dim] = shape;
  constexpr std::int64_t odd_offset = 9;
  switch (layout) {
    case Layout::bthd:
      return {aligned_offset, tokens * heads * dim, heads * dim, dim};
    case Layout::bhtd:
      return {aligned_offset, heads * tokens * dim, dim, tokens * dim};
    case Layout::packed:
      return {odd_offset + heads * dim, tokens * 3 * heads * dim, 3 * heads * dim, dim};
    default:
      const std::int64_t token_stride = heads * (dim + 3) + 5;
      return {odd_offset, tokens * token_stride + 7, token_stride, dim + 3};
  }
}

/// A tensor in a backend's memory, with poison (NaN) wherever there is no element of it.
template <class Backend, class E>
class Placed {
 public:
  Placed() = default;
  Placed(const Tensor<E>& tensor, Layout layout) : Placed(tensor, placement_of(tensor.shape, layout)) {}
  Placed(const Tensor<E>& tensor, const Placement& placement) : shape_(tensor.shape) {
    place(placement);
    for_elements([&](std::size_t from, std::size_t to) { image_[to] = tensor.values[from]; });
    array_ = Array(image_);
  }
  /// An output: poison everywhere.
  Placed(const TensorShape& shape, Layout layout) : Placed(shape, placement_of(shape, layout)) {}
  Placed(const TensorShape& shape, const Placement& placement) : shape_(shape) {
    place(placement);
    array_ = Array(image_);
  }

  TensorView<E> view() {
    TensorView<E> view = strides_;
    view.data = array_.data() + offset_;
    return view;
  }

  [[nodiscard]] Tensor<E> read() const {
    const std::vector<E> memory = array_.read();
    Tensor<E> tensor{shape_, std::vector<E>(element_count(shape_))};
    for_elements([&](std::size_t from, std::size_t to) { tensor.values[from] = memory[to]; });
    return tensor;
  }

  /// Whether everything around the tensor's elements is as it was.
  [[nodiscard]] bool surroundings_intact() const {
    const std::vector<E> memory = array_.read();
    std::vector<E> expected = image_;
    for_elements([&](std::size_t, std::size_t to) { expected[to] = memory[to]; });
    return std::memcmp(expected.data(), memory.data(), memory.size() * sizeof(E)) == 0;
  }

 private:
  using Array = typename Backend::template Array<E>;

  void place(const Placement& placement) {
    const auto [batch, tokens, heads, dim] = shape_;
    offset_ = placement.offset;
    strides_ = {nullptr, batch, tokens, heads, dim, placement.batch_stride, placement.token_stride, placement.head_stride};
    const std::int64_t end =
        offset_ + batch * strides_.batch_stride + tokens * strides_.token_stride + heads * strides_.head_stride + dim;
    image_.assign(static_cast<std::size_t>(end + aligned_offset), poison<E>());
  }

  template <class Function>
  void for_elements(const Function& function) const {
    std::size_t from = 0;
    for (std::int64_t b = 0; b < shape_.batch; ++b) {
      for (std::int64_t t = 0; t < shape_.tokens; ++t) {
        for (std::int64_t h = 0; h < shape_.heads; ++h) {
          for (std::int64_t c = 0; c < shape_.dim; ++c, ++from) {
            function(from, static_cast<std::size_t>(offset_ + b * strides_.batch_stride + t * strides_.token_stride +
                                                    h * strides_.head_stride + c));
          }
        }
      }
    }
  }

  TensorShape shape_;
  TensorView<E> strides_;
  std::int64_t offset_ = 0;
  std::vector<E> image_;
  Array array_;
};

}  // namespace jrt::test
