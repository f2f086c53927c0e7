// SPDX-License-Identifier: Apache-2.0
#include <jrt/state_exchange.hpp>

#include <doctest/doctest.h>

#include <cstring>
#include <jrt/mixer/stack.hpp>
#include <string>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/counted_states.hpp"
#include "support/hybrid_problem.hpp"
#include "support/linear_problem.hpp"
#include "support/window_problem.hpp"

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

// -- the numbers of tokens that windows have seen ------------------------------------------------------------------------

// Rows that are no power of two, so that a wrong count is a wrong row.
using Ring = Plain<float, 16, 6>;
using RotatedRing = Turned<float, 16, 6>;
using Hybrid = Mixed<float, 6, 16, 16>;
using Layers = Stack<Layer<GatedConvolution<float, 3>, 5>, Layer<Config, 2>, Layer<Ring, 2>, Layer<Hybrid, 3>>;

/// Two states of `Format` as bytes, and where in them counts stand: of each state the heads of one mixer, one behind the
/// other.
struct SavedCounts {
  std::size_t first;  // byte of head 0 of state 0
  std::size_t head_bytes;
  std::size_t state_bytes;
  int heads;
  std::string part{};

  [[nodiscard]] std::size_t at(int state, int head) const {
    return first + static_cast<std::size_t>(state) * state_bytes + static_cast<std::size_t>(head) * head_bytes;
  }
};

/// Of a mixer alone.
template <class Mixer>
SavedCounts counts_alone() {
  using Saved = StateFormatOf<Mixer>;
  constexpr std::size_t head = Saved::head_values * sizeof(typename Saved::Scalar);
  return {sizeof(SavedStatesHeader) + count_at<Mixer>(), head, 2 * head, 2};
}
/// Of a layer of the stack.
template <int layer>
SavedCounts counts_in_stack() {
  using Part = Layers::LayerAt<layer>;
  constexpr std::size_t headers = sizeof(SavedStatesHeader) * (1 + Layers::layers);
  return {headers + static_cast<std::size_t>(Layers::layer_offset(layer)) + count_at<typename Part::Config>(),
          static_cast<std::size_t>(Part::Format::slot_bytes(1)), static_cast<std::size_t>(Layers::slot_bytes()),
          Part::heads, "layer " + std::to_string(layer) + ": "};
}

template <class Backend, class Saved>
void check_counts_are_checked(const SavedCounts& counts, std::int64_t pool_heads) {
  using Scalar = typename Saved::Scalar;
  std::vector<Scalar> sevens(static_cast<std::size_t>(2 * pool_heads * Saved::head_elements));
  std::vector<std::byte> good(static_cast<std::size_t>(saved_states_bytes<Saved>(2, pool_heads)));
  {
    typename Backend::template Array<Scalar> empty(sevens);
    JRT_REQUIRE_OK(
        save_states(StateSlots<Saved>{view_pool<Saved>(empty.data(), 2, pool_heads)}, 2, good, Backend::execution()));
    static_cast<void>(empty.read());  // waits for the backend
  }
  std::memset(static_cast<void*>(sevens.data()), 7, sevens.size() * sizeof(Scalar));
  typename Backend::template Array<Scalar> memory(sevens);
  const StateSlots<Saved> target{view_pool<Saved>(memory.data(), 2, pool_heads)};
  const auto unchanged = [&] {
    const std::vector<Scalar> now = memory.read();
    return same_bytes(std::span<const Scalar>(now), std::span<const Scalar>(sevens));
  };
  const auto refuses = [&](const std::vector<std::byte>& bytes, const std::string& message) {
    const Status status = load_states(bytes, target, 2, Backend::execution());
    CHECK(status.code() == StatusCode::corrupt_data);
    CHECK(status.message() == "load_states: " + counts.part + "the saved number of tokens of " + message);
    CHECK(unchanged());
  };
  for (const std::int64_t count : {INT64_MAX, INT64_MAX - 1, std::int64_t{-1}, INT64_MIN, max_tokens + 1}) {
    for (int state = 0; state < 2; ++state) {
      for (int head = 0; head < counts.heads; ++head) {
        auto bytes = good;
        std::memcpy(bytes.data() + counts.at(state, head), &count, sizeof count);
        refuses(bytes, "state " + std::to_string(state) + ", head " + std::to_string(head) + " is " +
                           std::to_string(count) + ", but must be from 0 to 4611686018427387904.");
      }
    }
  }
  // A sequence has one number of tokens.
  auto bytes = good;
  bytes[counts.at(1, 1)] = std::byte{3};
  refuses(bytes, "state 1, head 1 is 3, but that of its head 0 is 0.");
  for (const std::int64_t count : {std::int64_t{0}, std::int64_t{5}, max_tokens}) {
    bytes = good;
    for (int head = 0; head < counts.heads; ++head) {
      std::memcpy(bytes.data() + counts.at(1, head), &count, sizeof count);
    }
    JRT_REQUIRE_OK(load_states(bytes, target, 2, Backend::execution()));
    std::vector<std::byte> again(good.size());
    JRT_REQUIRE_OK(save_states(target, 2, again, Backend::execution()));
    static_cast<void>(memory.read());  // waits for the backend
    CHECK(again == bytes);
  }
}

TEST_CASE_TEMPLATE("numbers of tokens that no sequence has are refused, and nothing is written", Backend,
                   JRT_TEST_BACKENDS) {
  check_counts_are_checked<Backend, StateFormatOf<Ring>>(counts_alone<Ring>(), 2);
  check_counts_are_checked<Backend, StateFormatOf<Plain<BFloat16, 8, 3>>>(counts_alone<Plain<BFloat16, 8, 3>>(), 2);
  check_counts_are_checked<Backend, StateFormatOf<Turned<double, 2, 0>>>(counts_alone<Turned<double, 2, 0>>(), 2);
  check_counts_are_checked<Backend, StateFormatOf<Hybrid>>(counts_alone<Hybrid>(), 2);
  check_counts_are_checked<Backend, StateFormatOf<Mixed<Half, 3, 8, 8>>>(counts_alone<Mixed<Half, 3, 8, 8>>(), 2);
  check_counts_are_checked<Backend, Layers>(counts_in_stack<2>(), 1);
  check_counts_are_checked<Backend, Layers>(counts_in_stack<3>(), 1);
}

TEST_CASE("a number of states that no buffer holds is refused, whatever it overflows to") {
  const auto numbers = random_states<Config>(2, 2, 1);
  Pool<Simple> pool(numbers);
  const auto good = saved(pool, 2);
  // Times the 13464 bytes of a state, in 64 bits: nothing, one state, less than nothing.
  for (const std::int64_t count : {std::int64_t{1} << 61, (std::int64_t{1} << 61) + 1, INT64_MAX}) {
    auto bytes = good;
    std::memcpy(bytes.data() + offsetof(SavedStatesHeader, count), &count, sizeof count);
    const Status status = detail::check_saved_states<Format>(bytes, count, 2);
    CHECK(status.code() == StatusCode::corrupt_data);
    CHECK(status.message().find("size in bytes is " + std::to_string(bytes.size()) + ", but must be 9223372036854775807") !=
          std::string_view::npos);
  }
}

/// A state of a ring that is full.
template <class Backend>
CountedState<Ring> full_state(const WindowProblem<Ring>& problem) {
  return CountedState<Ring>(run_window<Backend>(problem).caches);
}
template <class Backend, class E, int left, int d, int dv>
CountedState<Mixed<E, left, d, dv>> full_state(const HybridProblem<Mixed<E, left, d, dv>>& problem) {
  return CountedState<Mixed<E, left, d, dv>>(run_hybrid<Backend>(problem).states);
}

/// Without positions, a count says only which rows there are, and which is the next.
template <class Backend, class Mixer>
void check_any_count() {
  constexpr std::int64_t rows = Ring::left_window + 1;
  const auto state = full_state<Backend>(counted_problem<Mixer>(19));
  REQUIRE(state.count(0) == 19);
  for (const std::int64_t count : {max_tokens - 30, max_tokens - 2, max_tokens - 1, max_tokens, max_tokens + 1,
                                   max_tokens + 2, max_tokens + 6, INT64_MAX - 1, INT64_MAX, std::int64_t{-1},
                                   std::int64_t{-2}, INT64_MIN, std::int64_t{1} << 32, (std::int64_t{1} << 32) - 1}) {
    CAPTURE(count);
    const std::int64_t same = count < 0 ? 0 : rows + count % rows;
    const auto expected = continued<Backend>(state.with_count(same));
    const auto found = continued<Backend>(state.with_count(count));
    CHECK(found.outputs == expected.outputs);
    using Numbers = std::span<const typename CountedState<Mixer>::Scalar>;
    CHECK(same_bytes(Numbers(found.state.with_count(0).numbers), Numbers(expected.state.with_count(0).numbers)));
    // What is left can be saved, and loaded again.
    for (const std::int64_t head : {0, 1}) {
      CHECK(found.state.count(head) >= rows);
      CHECK(found.state.count(head) <= max_tokens);
      CHECK(found.state.count(head) % rows == (same + continued_tokens) % rows);
    }
  }
}

TEST_CASE_TEMPLATE("whatever number of tokens stands in a pool, outputs are right and nothing leaves the slot", Backend,
                   JRT_TEST_BACKENDS) {
  check_any_count<Backend, Ring>();
  check_any_count<Backend, Hybrid>();
}

TEST_CASE_TEMPLATE("keys turn by their positions as far as those are counted", Backend, JRT_TEST_BACKENDS) {
  constexpr std::int64_t tokens = 30;
  WindowProblem<RotatedRing> problem({.batch = 1, .tokens = tokens});
  auto state = CountedState<RotatedRing>().with_count(max_tokens - tokens);
  std::vector<float> caches = state.numbers;
  auto output = step_window<Backend>(problem, 0, tokens, caches);
  // The first tokens see zeros that stand in the ring.
  const std::int64_t first = RotatedRing::left_window + 1;
  const auto behind = [&](const auto& all) { return token_slice(all, first, tokens - first).values; };
  CHECK(relative_error(behind(output), behind(reference_window(problem))) <= tolerance<float>());
  CHECK(CountedState<RotatedRing>(caches).count(1) == max_tokens);
}

}  // namespace
}  // namespace jrt::test
