// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <jrt/decode.hpp>
#include <jrt/mixer/linear_attention.hpp>
#include <jrt/state.hpp>
#include <span>
#include <vector>

#include "support/hybrid_problem.hpp"
#include "support/linear_problem.hpp"
#include "support/window_problem.hpp"

/// States of mixers that count tokens, with any number there, and what comes of them.
namespace jrt::test {

inline constexpr std::int64_t max_tokens = std::int64_t{1} << 62;

template <class T>
bool same_bytes(std::span<const T> a, std::span<const T> b) {
  const auto x = std::as_bytes(a);
  const auto y = std::as_bytes(b);
  return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

/// Byte in one head at which the count of tokens stands.
template <WindowConfig Config>
constexpr std::size_t count_at() {
  using Format = StateFormatOf<Config>;
  return static_cast<std::size_t>(Format::count_offset) * sizeof(typename Format::Scalar);
}
template <HybridConfig Config>
constexpr std::size_t count_at() {
  return static_cast<std::size_t>(StateFormatOf<Config>::window_offset_bytes) + count_at<typename Config::Window>();
}

template <WindowConfig Config>
WindowProblem<Config> counted_problem(std::int64_t tokens) {
  return WindowProblem<Config>({.batch = 1, .tokens = tokens});
}
template <HybridConfig Config>
HybridProblem<Config> counted_problem(std::int64_t tokens) {
  return HybridProblem<Config>({.batch = 1, .tokens = tokens, .query_heads = 4});
}
template <class Backend, class Config>
PlacedWindow<Backend, Config> placed(const WindowProblem<Config>& problem) {
  return {problem, Layout::bthd};
}
template <class Backend, class Config>
PlacedHybrid<Backend, Config> placed(const HybridProblem<Config>& problem) {
  return {problem, Layout::bthd};
}

/// One slot of `heads` heads as plain numbers.
template <class Config>
class CountedState {
 public:
  using Format = StateFormatOf<Config>;
  using Scalar = typename Format::Scalar;
  static constexpr std::int64_t heads = 2;

  CountedState() : numbers(static_cast<std::size_t>(heads * Format::head_elements)) {}
  explicit CountedState(std::vector<Scalar> from) : numbers(std::move(from)) {}

  [[nodiscard]] std::int64_t count(std::int64_t head) const {
    std::int64_t count = 0;
    std::memcpy(&count, bytes() + at(head), sizeof count);
    return count;
  }
  [[nodiscard]] CountedState with_count(std::int64_t count) const {
    CountedState changed = *this;
    for (std::int64_t h = 0; h < heads; ++h) {
      std::memcpy(reinterpret_cast<unsigned char*>(changed.numbers.data()) + at(h), &count, sizeof count);
    }
    return changed;
  }

  std::vector<Scalar> numbers;

 private:
  static std::size_t at(std::int64_t head) {
    return static_cast<std::size_t>(head * Format::head_elements) * sizeof(Scalar) + count_at<Config>();
  }
  [[nodiscard]] const unsigned char* bytes() const { return reinterpret_cast<const unsigned char*>(numbers.data()); }
};

template <class Config>
struct Continued {
  std::vector<double> outputs;
  CountedState<Config> state;
};

/// Every operation that goes on from a state, one after the other: steps of one token and of several, staged ones of which
/// some are committed, a prefill. Also checks that nothing around the slot was touched.
template <class Backend, class Config>
Continued<Config> continued(const CountedState<Config>& from) {
  using Format = StateFormatOf<Config>;
  using Scalar = typename Format::Scalar;
  using E = typename Config::Element;
  constexpr std::int64_t heads = CountedState<Config>::heads;
  constexpr std::size_t guard = 1024;
  Scalar guarding{};
  std::memset(&guarding, 0x5a, sizeof guarding);
  std::vector<Scalar> guarded(guard, guarding);
  guarded.insert(guarded.end(), from.numbers.begin(), from.numbers.end());
  guarded.insert(guarded.end(), guard, guarding);
  typename Backend::template Array<Scalar> memory(guarded);
  const StateSlots<Format> slot{view_pool<Format>(memory.data() + guard, 1, heads)};
  typename Backend::template Array<E> staged(std::vector<E>(StagingView<Config>{nullptr, 1, 3, heads}.bytes() / sizeof(E)));
  const StagingView<Config> staging{staged.data(), 1, 3, heads};
  typename Backend::template Array<std::int32_t> accepted({2});

  Continued<Config> result;
  const auto problem = counted_problem<Config>(30);
  std::int64_t taken = 0;
  const auto take = [&](std::int64_t tokens, const auto& run) {
    auto call = placed<Backend>(problem.piece(taken, tokens));
    run(call);
    CHECK(call.output.surroundings_intact());
    for (const E number : call.output.read().values) {
      result.outputs.push_back(convert<double>(number));
    }
    taken += tokens;
  };
  const auto step = [&](auto& call) {
    auto args = call.template args<DecodeArgs<Config>>();
    args.source = slot;
    JRT_REQUIRE_OK(decode_step(args, Backend::execution()));
  };
  take(1, step);
  take(1, step);
  take(3, step);
  take(3, [&](auto& call) {
    auto args = call.template args<StagedStepArgs<Config>>();
    args.state = slot;
    args.staging = staging;
    JRT_REQUIRE_OK(staged_step(args, Backend::execution()));
  });
  CommitArgs<Config> commits;
  commits.staging = staging;
  commits.accepted_tokens = accepted.data();
  commits.source = slot;
  JRT_REQUIRE_OK(commit(commits, Backend::execution()));
  take(17, [&](auto& call) {
    auto args = call.template args<PrefillArgs<Config>>();
    args.initial_state = slot;
    args.final_state = slot;
    JRT_REQUIRE_OK(prefill(args, Backend::execution()));
  });
  take(1, step);

  const std::vector<Scalar> after = memory.read();
  const std::span<const Scalar> all(after);
  const std::span<const Scalar> guards(guarded.data(), guard);
  CHECK(same_bytes(all.first(guard), guards));
  CHECK(same_bytes(all.last(guard), guards));
  result.state = CountedState<Config>({after.begin() + guard, after.end() - guard});
  return result;
}
/// Tokens that it adds to the state.
inline constexpr std::int64_t continued_tokens = 1 + 1 + 3 + 2 + 17 + 1;

}  // namespace jrt::test
