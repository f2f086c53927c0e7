// SPDX-License-Identifier: Apache-2.0
#include <jrt/state_exchange.hpp>

#include <doctest/doctest.h>

#include <cstring>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/problem.hpp"

namespace jrt::test {
namespace {

using Config = Prefix<float, 16, 10>;
using Format = StateFormatOf<Config>;

/// Some slots of two heads in a backend's memory.
template <class Backend>
struct Pool {
  typename Backend::template Array<float> memory;
  std::int64_t slots;

  explicit Pool(const StateNumbers<Config>& numbers)
      : memory(numbers), slots(static_cast<std::int64_t>(numbers.size()) / (2 * Format::head_elements)) {}
  StateSlots<Format> at(const std::int32_t* indices = nullptr) {
    return {view_pool<Format>(memory.data(), slots, 2), indices};
  }
  [[nodiscard]] StateNumbers<Config> read() const { return memory.read(); }
};

/// What `save_states` wrote is there.
template <class Backend>
std::vector<std::byte> saved(Pool<Backend>& pool, std::int64_t count, const std::int32_t* indices = nullptr) {
  std::vector<std::byte> buffer(static_cast<std::size_t>(saved_states_bytes<Format>(count, 2)));
  JRT_REQUIRE_OK(save_states(pool.at(indices), count, buffer, Backend::execution()));
  static_cast<void>(pool.read());  // waits for the backend
  return buffer;
}

TEST_CASE("dense export and import are inverse to the bit, in both of the customary orders") {
  const auto numbers = random_states<Config>(3, 2, 1);
  Pool<Concurrent> pool(numbers);
  constexpr std::int64_t rows = 273;
  for (const bool transposed : {false, true}) {
    Concurrent::Array<float> sums(std::vector<float>(3 * 2 * rows * 10, poison<float>()));
    Concurrent::Array<float> normaliser(std::vector<float>(3 * 2 * rows, poison<float>()));
    auto dense = view_dense_states<Format>(sums.data(), normaliser.data(), 2);
    if (transposed) {
      dense.row_stride = 1;
      dense.column_stride = rows;
    }
    JRT_REQUIRE_OK(export_states(pool.at(), dense, 3, Concurrent::execution()));
    for (const float number : sums.read()) {
      REQUIRE_FALSE(std::isnan(number));
    }
    // Row 0 is the constant's: its sum in z counts the tokens.
    CHECK(normaliser.read()[0] == 3);
    Pool<Concurrent> back(StateNumbers<Config>(numbers.size()));
    JRT_REQUIRE_OK(import_states(dense, back.at(), 3, Concurrent::execution()));
    CHECK(used_numbers<Config>(back.read()) == used_numbers<Config>(numbers));
  }
}

TEST_CASE("a double export holds a float state exactly") {
  const auto numbers = random_states<Config>(1, 2, 1);
  Pool<Simple> pool(numbers);
  Simple::Array<double> sums(std::vector<double>(2 * 273 * 10));
  Simple::Array<double> normaliser(std::vector<double>(2 * 273));
  const auto dense = view_dense_states<Format>(sums.data(), normaliser.data(), 2);
  JRT_REQUIRE_OK(export_states(pool.at(), dense, 1, Simple::execution()));
  Pool<Simple> back(StateNumbers<Config>(numbers.size()));
  JRT_REQUIRE_OK(import_states(dense, back.at(), 1, Simple::execution()));
  CHECK(used_numbers<Config>(back.read()) == used_numbers<Config>(numbers));
}

TEST_CASE("maps without a dense order of their own export their rows as they are") {
  using Elu = PrefixElu<float, 16, 10>;
  using EluFormat = StateFormatOf<Elu>;
  const auto numbers = random_states<Elu>(1, 1, 1);
  Simple::Array<float> pool(numbers);
  Simple::Array<float> sums(std::vector<float>(16 * 10));
  Simple::Array<float> normaliser(std::vector<float>(16));
  JRT_REQUIRE_OK(export_states<EluFormat>({view_pool<EluFormat>(pool.data(), 1, 1)},
                                          view_dense_states<EluFormat>(sums.data(), normaliser.data(), 1), 1,
                                          Simple::execution()));
  CHECK(sums.read() == std::vector<float>(numbers.begin(), numbers.begin() + 160));
  CHECK(normaliser.read() == std::vector<float>(numbers.begin() + 160, numbers.begin() + 176));
}

TEST_CASE_TEMPLATE("saved states load to the same bits, into any slots", Backend, JRT_TEST_BACKENDS) {
  auto numbers = random_states<Config>(4, 2, 1);
  typename Backend::template Array<std::int32_t> from({3, skip_slot, 1});
  typename Backend::template Array<std::int32_t> to({0, 1, 2});
  Pool<Backend> pool(numbers);
  const auto buffer = saved(pool, 3, from.data());
  Pool<Backend> back(StateNumbers<Config>(numbers.size(), poison<float>()));
  JRT_REQUIRE_OK(load_states(buffer, back.at(to.data()), 3, Backend::execution()));
  const auto expected = used_numbers<Config>(numbers);
  const auto loaded = used_numbers<Config>(back.read());
  const std::size_t each = expected.size() / 4;
  for (std::size_t i = 0; i < each; ++i) {
    REQUIRE(loaded[i] == expected[3 * each + i]);
    REQUIRE(loaded[each + i] == 0);
    REQUIRE(loaded[2 * each + i] == expected[each + i]);
    REQUIRE(std::isnan(loaded[3 * each + i]));
  }
}

TEST_CASE("bytes that are not these states are refused, and nothing is written") {
  const auto numbers = random_states<Config>(2, 2, 1);
  Pool<Simple> pool(numbers);
  const auto good = saved(pool, 2);
  const auto refuses = [&](const std::vector<std::byte>& bytes, const char* part, std::int64_t count = 2) {
    Pool<Simple> target(StateNumbers<Config>(numbers.size(), 7.0F));
    const Status status = load_states(bytes, target.at(), count, Simple::execution());
    INFO(std::string(status.message()));
    CHECK(status.code() == StatusCode::corrupt_data);
    CHECK(status.message().find(part) != std::string_view::npos);
    CHECK(target.read() == StateNumbers<Config>(numbers.size(), 7.0F));
  };
  refuses({}, "size in bytes is 0, but must be 96");
  refuses(std::vector<std::byte>(good.begin(), good.end() - 1), "size in bytes");
  refuses(std::vector<std::byte>(good.begin(), good.begin() + 50), "size in bytes is 50");
  const auto changed = [&](std::size_t offset, auto value) {
    auto bytes = good;
    std::memcpy(bytes.data() + offset, &value, sizeof value);
    return bytes;
  };
  refuses(changed(0, 'X'), "magic");
  refuses(changed(offsetof(SavedStatesHeader, byte_order), std::uint32_t{0x04030201}), "byte order");
  refuses(changed(offsetof(SavedStatesHeader, version), std::uint32_t{2}), "version is 2, but must be 1");
  refuses(changed(offsetof(SavedStatesHeader, scalar), 'g'), "scalar type is 'gloat32', but must be 'float32'");
  refuses(changed(offsetof(SavedStatesHeader, feature_map), 'T'), "feature map is 'Taylor2/symmetric'");
  refuses(changed(offsetof(SavedStatesHeader, rows), std::uint32_t{154}), "rows is 154, but must be 153");
  refuses(changed(offsetof(SavedStatesHeader, columns), std::uint32_t{11}), "columns is 11, but must be 10");
  refuses(changed(offsetof(SavedStatesHeader, input_dim), std::uint32_t{17}), "input_dim is 17, but must be 16");
  refuses(changed(offsetof(SavedStatesHeader, heads), std::int64_t{3}), "heads is 3, but must be 2");
  refuses(changed(offsetof(SavedStatesHeader, count), std::int64_t{1} << 60),
          "states is 1152921504606846976, but must be 2");
  refuses(good, "states is 2, but must be 1", 1);
}

}  // namespace
}  // namespace jrt::test
