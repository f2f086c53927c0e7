// SPDX-License-Identifier: Apache-2.0
#include <jrt/state_operations.hpp>

#include <doctest/doctest.h>

#include <cstring>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

template <int d, class Packing, class Scalar>
struct Packed : PrefixLinearAttention<float, d, 10> {
  using FeatureMap = Taylor2<d, Packing>;
  using StateScalar = Scalar;
};

/// A backend's pool of given numbers.
template <class Backend, class Config>
struct Pool {
  using Format = StateFormatOf<Config>;
  typename Backend::template Array<typename Config::StateScalar> memory;
  std::int64_t slots;
  std::int64_t heads;

  Pool(const StateNumbers<Config>& numbers, std::int64_t slot_count, std::int64_t head_count)
      : memory(numbers), slots(slot_count), heads(head_count) {}
  StateSlots<Format> at(const std::int32_t* indices = nullptr) {
    return {view_pool<Format>(memory.data(), slots, heads), indices};
  }
};

TEST_CASE("an owning pool is cleared, aligned and as large as it says") {
  using Format = StateFormatOf<Prefix<float, 16, 64>>;
  static_assert(Format::rows == 153 && Format::columns == 64);
  static_assert(Format::head_elements % 16 == 0 && Format::head_elements >= 153 * 65);
  StatePool<Format> pool;
  JRT_REQUIRE_OK(StatePool<Format>::allocate(3, 4, pool));
  const auto view = pool.view();
  CHECK(view.slots == 3);
  CHECK(view.heads == 4);
  CHECK(reinterpret_cast<std::uintptr_t>(view.data) % 64 == 0);
  CHECK(view.head(2, 3) + Format::head_elements == view.data + 3 * Format::slot_bytes(4) / 4);
  for (const float* p = view.data; p != view.head(2, 3) + Format::head_elements; ++p) {
    REQUIRE(*p == 0);
  }
  CHECK(StatePool<Format>::allocate(-1, 4, pool).code() == StatusCode::invalid_argument);
  CHECK(StatePool<Format>::allocate(1LL << 44, 1 << 10, pool).code() == StatusCode::out_of_memory);
  CHECK(pool.slots() == 3);
}

TEST_CASE_TEMPLATE("clear sets the named slots to zero and no other", Backend, JRT_TEST_BACKENDS) {
  using Config = Prefix<float>;
  const auto numbers = random_states<Config>(4, 2, 1);
  Pool<Backend, Config> pool(numbers, 4, 2);
  typename Backend::template Array<std::int32_t> slots({2, skip_slot, 0});
  JRT_REQUIRE_OK(clear_states(pool.at(slots.data()), 3, Backend::execution()));
  const auto after = pool.memory.read();
  const std::size_t each = numbers.size() / 4;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const bool cleared = i / each == 2 || i / each == 0;
    REQUIRE(after[i] == (cleared ? 0 : numbers[i]));
  }
}

TEST_CASE_TEMPLATE("copy forks a sequence; merge adds", Backend, JRT_TEST_BACKENDS) {
  using Config = Prefix<double>;
  const auto numbers = random_states<Config>(4, 2, 1);
  Pool<Backend, Config> pool(numbers, 4, 2);
  typename Backend::template Array<std::int32_t> from({0, 1, skip_slot});
  typename Backend::template Array<std::int32_t> to({3, skip_slot, 2});
  JRT_REQUIRE_OK(copy_states(pool.at(from.data()), pool.at(to.data()), 3, Backend::execution()));
  auto after = pool.memory.read();
  const std::size_t each = numbers.size() / 4;
  for (std::size_t i = 0; i < each; ++i) {
    REQUIRE(after[3 * each + i] == numbers[i]);
    REQUIRE(after[2 * each + i] == numbers[2 * each + i]);
  }
  typename Backend::template Array<std::int32_t> other({1});
  JRT_REQUIRE_OK(merge_states(pool.at(other.data()), pool.at(to.data()), 1, Backend::execution()));
  after = pool.memory.read();
  for (std::size_t i = 0; i < each; ++i) {
    REQUIRE(after[3 * each + i] == numbers[i] + numbers[each + i]);
  }
}

/// Both conversions between the packings, and back to the bit.
template <int d, class Scalar>
void check_packings() {
  using Symmetric = Packed<d, SymmetricPacking, Scalar>;
  using Dense = Packed<d, DensePacking, Scalar>;
  using DenseFormat = StateFormatOf<Dense>;
  const auto symmetric = random_states<Symmetric>(2, 3, 8);
  const auto dense = random_states<Dense>(2, 3, 8);
  Pool<Concurrent, Symmetric> symmetric_pool(symmetric, 2, 3);
  Pool<Concurrent, Dense> dense_pool(StateNumbers<Dense>(dense.size(), poison<Scalar>()), 2, 3);
  JRT_REQUIRE_OK(copy_states(symmetric_pool.at(), dense_pool.at(), 2, Concurrent::execution()));
  // A state accumulated in dense order in the first place is the same up to rounding in the order of the factors.
  CHECK(relative_error(used_numbers<Dense>(dense_pool.memory.read()), used_numbers<Dense>(dense)) <=
        (std::is_same_v<Scalar, double> ? 1e-15 : tolerance<Scalar>()));
  // Row by row: what the packing says stands there, to the bit.
  const auto converted = dense_pool.memory.read();
  for (int r = 0; r < DenseFormat::rows; ++r) {
    const TaylorRow wanted = DensePacking::row<d>(r);
    int source = 0;
    for (int s = 0; s < StateFormatOf<Symmetric>::rows; ++s) {
      const TaylorRow row = SymmetricPacking::row<d>(s);
      if (row == wanted || row == TaylorRow{wanted.second, wanted.first}) {
        source = s;
      }
    }
    for (int c = 0; c < 10; ++c) {
      REQUIRE(converted[static_cast<std::size_t>(r * 10 + c)] == symmetric[static_cast<std::size_t>(source * 10 + c)]);
    }
  }
  Pool<Simple, Symmetric> back(StateNumbers<Symmetric>(symmetric.size()), 2, 3);
  JRT_REQUIRE_OK(copy_states(dense_pool.at(), back.at(), 2, Simple::execution()));
  CHECK(used_numbers<Symmetric>(back.memory.read()) == used_numbers<Symmetric>(symmetric));
}

TEST_CASE("row orders convert both ways, exact to the bit") {
  check_packings<16, float>();
  check_packings<16, double>();
  check_packings<5, float>();
  check_packings<24, BFloat16>();
  check_packings<2, Half>();
}

TEST_CASE("a dense state with unequal mirror entries reads the same after packing") {
  using Dense = Packed<6, DensePacking, double>;
  using Symmetric = Packed<6, SymmetricPacking, double>;
  auto numbers = random_states<Dense>(1, 1, 3);
  for (std::size_t i = 7 * 10; i < numbers.size(); ++i) {
    numbers[i] += 0.01 * static_cast<double>(i % 17);  // no longer symmetric
  }
  Pool<Simple, Dense> dense(numbers, 1, 1);
  Pool<Simple, Symmetric> symmetric(StateNumbers<Symmetric>(state_numbers<Symmetric>(1, 1)), 1, 1);
  JRT_REQUIRE_OK(copy_states(dense.at(), symmetric.at(), 1, Simple::execution()));
  const auto query = random_tensor<double>({1, 1, 1, 6}, 9).values;
  std::vector<double> dense_features(43);
  std::vector<double> symmetric_features(28);
  Taylor2<6, DensePacking>{}.expand_query(query.data(), dense_features.data());
  Taylor2<6>{}.expand_query(query.data(), symmetric_features.data());
  const auto packed = symmetric.memory.read();
  for (int c = 0; c < 10; ++c) {
    double a = 0;
    double b = 0;
    for (int r = 0; r < 43; ++r) {
      a += dense_features[static_cast<std::size_t>(r)] * numbers[static_cast<std::size_t>(r * 10 + c)];
    }
    for (int r = 0; r < 28; ++r) {
      b += symmetric_features[static_cast<std::size_t>(r)] * packed[static_cast<std::size_t>(r * 10 + c)];
    }
    CHECK(a == doctest::Approx(b).epsilon(1e-13));
  }
}

TEST_CASE("storage types convert by rounding") {
  using Wide = Packed<16, SymmetricPacking, float>;
  using Narrow = Packed<16, SymmetricPacking, BFloat16>;
  const auto numbers = random_states<Wide>(1, 2, 8);
  Pool<Simple, Wide> wide(numbers, 1, 2);
  Pool<Simple, Narrow> narrow(StateNumbers<Narrow>(numbers.size()), 1, 2);
  JRT_REQUIRE_OK(copy_states(wide.at(), narrow.at(), 1, Simple::execution()));
  const auto rounded = narrow.memory.read();
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    REQUIRE(rounded[i] == BFloat16(numbers[i]));
  }
}

}  // namespace
}  // namespace jrt::test
