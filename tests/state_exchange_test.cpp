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

StateSlots<Format> slots_of(StateNumbers<Config>& numbers, const std::int32_t* indices = nullptr) {
  return {view_pool<Format>(numbers.data(), static_cast<std::int64_t>(numbers.size()) / (2 * Format::head_elements), 2),
          indices};
}

TEST_CASE("dense export and import are inverse to the bit, in both of the customary orders") {
  auto numbers = random_states<Config>(3, 2, 1);
  constexpr std::int64_t rows = 273;
  for (const bool transposed : {false, true}) {
    std::vector<float> sums(3 * 2 * rows * 10, poison<float>());
    std::vector<float> normaliser(3 * 2 * rows, poison<float>());
    auto dense = view_dense_states<Format>(sums.data(), normaliser.data(), 2);
    if (transposed) {
      dense.row_stride = 1;
      dense.column_stride = rows;
    }
    JRT_REQUIRE_OK(export_states(slots_of(numbers), dense, 3, CpuThreads::execution()));
    for (const float number : sums) {
      REQUIRE_FALSE(std::isnan(number));
    }
    // Row 0 is the constant's: its sum in z counts the tokens.
    CHECK(normaliser[0] == 3);
    auto back = StateNumbers<Config>(numbers.size());
    JRT_REQUIRE_OK(import_states(dense, slots_of(back), 3, CpuThreads::execution()));
    CHECK(used_numbers<Config>(back) == used_numbers<Config>(numbers));
  }
}

TEST_CASE("a double export holds a float state exactly") {
  auto numbers = random_states<Config>(1, 2, 1);
  std::vector<double> sums(2 * 273 * 10);
  std::vector<double> normaliser(2 * 273);
  const auto dense = view_dense_states<Format>(sums.data(), normaliser.data(), 2);
  JRT_REQUIRE_OK(export_states(slots_of(numbers), dense, 1, Cpu{}));
  auto back = StateNumbers<Config>(numbers.size());
  JRT_REQUIRE_OK(import_states(dense, slots_of(back), 1, Cpu{}));
  CHECK(used_numbers<Config>(back) == used_numbers<Config>(numbers));
}

TEST_CASE("maps without a dense order of their own export their rows as they are") {
  using Elu = PrefixElu<float, 16, 10>;
  using EluFormat = StateFormatOf<Elu>;
  auto numbers = random_states<Elu>(1, 1, 1);
  std::vector<float> sums(16 * 10);
  std::vector<float> normaliser(16);
  JRT_REQUIRE_OK(export_states<EluFormat>({view_pool<EluFormat>(numbers.data(), 1, 1)},
                                          view_dense_states<EluFormat>(sums.data(), normaliser.data(), 1), 1, Cpu{}));
  CHECK(std::memcmp(sums.data(), numbers.data(), sums.size() * sizeof(float)) == 0);
  CHECK(std::memcmp(normaliser.data(), numbers.data() + sums.size(), normaliser.size() * sizeof(float)) == 0);
}

TEST_CASE_TEMPLATE("saved states load to the same bits, into any slots", Backend, JRT_TEST_BACKENDS) {
  auto numbers = random_states<Config>(4, 2, 1);
  const std::vector<std::int32_t> from{3, skip_slot, 1};
  const std::vector<std::int32_t> to{0, 1, 2};
  std::vector<std::byte> buffer(static_cast<std::size_t>(saved_states_bytes<Format>(3, 2)));
  JRT_REQUIRE_OK(save_states(slots_of(numbers, from.data()), 3, buffer, Backend::execution()));
  StateNumbers<Config> back(numbers.size(), poison<float>());
  JRT_REQUIRE_OK(load_states(buffer, slots_of(back, to.data()), 3, Backend::execution()));
  const auto expected = used_numbers<Config>(numbers);
  const auto loaded = used_numbers<Config>(back);
  const std::size_t each = expected.size() / 4;
  for (std::size_t i = 0; i < each; ++i) {
    REQUIRE(loaded[i] == expected[3 * each + i]);
    REQUIRE(loaded[each + i] == 0);
    REQUIRE(loaded[2 * each + i] == expected[each + i]);
    REQUIRE(std::isnan(loaded[3 * each + i]));
  }
}

TEST_CASE("bytes that are not these states are refused, and nothing is written") {
  auto numbers = random_states<Config>(2, 2, 1);
  std::vector<std::byte> good(static_cast<std::size_t>(saved_states_bytes<Format>(2, 2)));
  JRT_REQUIRE_OK(save_states(slots_of(numbers), 2, good, Cpu{}));
  const auto refuses = [&](const std::vector<std::byte>& bytes, const char* part, std::int64_t count = 2) {
    StateNumbers<Config> target(numbers.size(), 7.0F);
    const Status status = load_states(bytes, slots_of(target), count, Cpu{});
    INFO(std::string(status.message()));
    CHECK(status.code() == StatusCode::corrupt_data);
    CHECK(status.message().find(part) != std::string_view::npos);
    CHECK(target == StateNumbers<Config>(numbers.size(), 7.0F));
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
