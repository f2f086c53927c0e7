// SPDX-License-Identifier: Apache-2.0
#include <jrt/tensor_view.hpp>

#include <doctest/doctest.h>

#include <numeric>
#include <vector>

namespace jrt {
namespace {

TEST_CASE("views address the element that their layout says") {
  constexpr TensorShape shape{.batch = 2, .tokens = 3, .heads = 4, .dim = 5};
  std::vector<int> data(2 * 3 * 4 * 5);
  std::iota(data.begin(), data.end(), 0);
  const auto bthd = view_bthd(data.data(), shape);
  const auto bhtd = view_bhtd(data.data(), shape);
  for (int b = 0; b < 2; ++b) {
    for (int t = 0; t < 3; ++t) {
      for (int h = 0; h < 4; ++h) {
        CHECK(*bthd.row(b, t, h) == ((b * 3 + t) * 4 + h) * 5);
        CHECK(*bhtd.row(b, t, h) == ((b * 4 + h) * 3 + t) * 5);
        CHECK(bhtd.transposed().row(b, h, t) == bhtd.row(b, t, h));
      }
    }
  }
}

TEST_CASE("slices are views of the part") {
  std::vector<int> data(2 * 6 * 9 * 4);
  std::iota(data.begin(), data.end(), 0);
  // A packed projection with 3 heads each of q, k and v.
  const auto packed = view_bthd(data.data(), {.batch = 2, .tokens = 6, .heads = 9, .dim = 4});
  const auto key = packed.slice_heads(3, 3);
  CHECK(key.heads == 3);
  CHECK(key.row(1, 2, 1) == packed.row(1, 2, 4));
  const auto tail = key.slice_tokens(4, 2).slice_batch(1, 1);
  CHECK(tail.tokens == 2);
  CHECK(tail.batch == 1);
  CHECK(tail.row(0, 1, 2) == packed.row(1, 5, 5));
  const TensorView<const int> read_only = tail;
  CHECK(read_only.row(0, 0, 0) == tail.row(0, 0, 0));
}

TEST_CASE("offsets are 64-bit") {
  const TensorView<char> view{nullptr, 1, 1LL << 33, 1, 8, 0, 1LL << 20, 8};
  const auto distance = reinterpret_cast<std::intptr_t>(view.row(0, (1LL << 33) - 1, 0));
  CHECK(distance == ((1LL << 33) - 1) * (1LL << 20));
}

}  // namespace
}  // namespace jrt
