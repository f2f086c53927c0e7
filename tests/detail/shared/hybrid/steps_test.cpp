// SPDX-License-Identifier: Apache-2.0
// The steps that a prefill of the CUDA backend takes, taken by the CPU's kernels: which tokens, keys and states each has is
// plain arithmetic.
#include <jrt/detail/shared/hybrid/steps.hpp>

#include <doctest/doctest.h>

#include <jrt/cpu.hpp>

#include "support/cpu_backend.hpp"
#include "support/fuzz.hpp"
#include "support/hybrid_problem.hpp"

namespace jrt::test {
namespace {

template <class Part>
void run_step(const detail::PrefillInputOf<Part>& args, std::int64_t sequences, std::int64_t heads) {
  detail::cpu::Prefill<Part> work(args, sequences, heads, 1);
  std::vector<std::byte> memory(detail::counted_bytes(work), std::byte{0xff});
  detail::Arena arena(Workspace{memory.data(), memory.size()});
  work.take(arena);
  work.run(SerialExecutor{});
}

template <class Config>
void prefill_in_steps(const PrefillArgs<Config>& args) {
  using Parts = detail::HybridParts<Config>;
  using Steps = detail::LinearPartSteps<Config>;
  using Format = typename Steps::Format;
  const Steps steps(args);
  const std::int64_t heads = args.key.heads;
  const std::int64_t sequences = detail::sequence_count(args.sequences, args.query.batch);
  std::vector<typename Format::Scalar> memory(static_cast<std::size_t>(sequences * heads * Format::head_elements),
                                              poison<typename Format::Scalar>());
  const StateSlots<Format> between{view_pool<Format>(memory.data(), sequences, heads)};
  // Denominators that no step writes must not be read; those of first tokens without any key are 0.
  std::vector<typename Parts::Denominator> numbers(static_cast<std::size_t>(Parts::denominator_count(args)),
                                                   steps.has_first() ? NAN : 0);
  const auto denominators = Parts::denominators(args, numbers.data());
  if constexpr (Steps::reads_encoder) {
    if (steps.has_encoder()) {
      run_step<typename Steps::Encoder>(steps.encoder(between), sequences, heads);
    }
  }
  if (steps.has_first()) {
    run_step<typename Steps::First>(steps.first(between, denominators), sequences, heads);
  }
  if (steps.has_others()) {
    run_step<typename Steps::Others>(steps.others(between, denominators), sequences, heads);
  }
  using Window = detail::MixerBackend<typename Parts::Ring, Cpu<SerialExecutor>>;
  const auto call = Parts::window(args, denominators);
  std::vector<std::byte> workspace(Window::call_bytes(call, Cpu{}));
  Window::run_call(call, {workspace.data(), workspace.size()}, Cpu{});
}

/// One call in steps and at once, from states of which some may be missing or skipped.
template <class Config>
void check_case(Random& random) {
  using Format = StateFormatOf<Config>;
  const auto as_int = [](std::int64_t number) { return static_cast<std::int32_t>(number); };
  ProblemShape shape{.batch = random.between(1, 4), .tokens = random_length(random, 60)};
  const std::int64_t before = random.between(0, 20);
  SequenceLists lists;
  const bool packed = random.chance(0.5);
  std::int64_t count = shape.batch;
  if (packed) {
    count = lists.count = random.between(1, 5);
    lists.cu_seqlens = {0};
    lists.cu_encoder_seqlens = {0};
    shape.batch = 1;
  }
  for (std::int64_t b = 0; b < count; ++b) {
    const std::int64_t tokens = packed ? random_length(random, 40) : random.between(0, shape.tokens);
    const std::int64_t prefix = random.chance(0.5) && Config::Linear::Mask::reads_encoder ? random.between(0, tokens) : 0;
    lists.left_pads.push_back(random.chance(0.3) ? as_int(random.between(0, tokens)) : 0);
    lists.prefix_lens.push_back(as_int(prefix));
    if (packed) {
      lists.cu_seqlens.push_back(lists.cu_seqlens.back() + as_int(tokens));
      lists.cu_encoder_seqlens.push_back(lists.cu_encoder_seqlens.back() + as_int(prefix));
    } else {
      lists.seq_lens.push_back(as_int(tokens));
      shape.prefix = std::max(shape.prefix, prefix);
    }
  }
  if (packed) {
    shape.tokens = lists.cu_seqlens.back();
    shape.prefix = lists.cu_encoder_seqlens.back();
  }
  const auto seed = static_cast<unsigned>(random.between(1, 1 << 30));
  HybridProblem<Config> problem(shape, seed);
  problem.sequences = lists;
  const auto states = run_hybrid<Simple>(HybridProblem<Config>({.batch = 6, .tokens = before}, seed + 7)).states;
  std::vector<std::int32_t> from;
  std::vector<std::int32_t> to;
  std::vector<std::uint8_t> has_initial;
  for (std::int32_t b = 0; b < count; ++b) {
    from.push_back(random.chance(0.2) ? skip_slot : 5 - b);
    to.push_back(random.chance(0.2) ? skip_slot : b);
    has_initial.push_back(random.chance(0.7) ? 1 : 0);
  }
  const bool has_states = random.chance(0.7);
  const bool keeps_states = random.chance(0.8);
  const auto run = [&](auto prefill_with) {
    PlacedHybrid<Simple, Config> placed(problem, Layout::spaced);
    MixedStates initial = states;
    MixedStates final_states = poisoned_mixed<Config>(6, 2);
    auto args = placed.template args<PrefillArgs<Config>>();
    if (has_states) {
      args.initial_state = {view_pool<Format>(initial.data(), 6, 2), from.data()};
      args.has_initial_state = has_initial.data();
    }
    if (keeps_states) {
      args.final_state = {view_pool<Format>(final_states.data(), 6, 2), to.data()};
    }
    prefill_with(args);
    CHECK(placed.output.surroundings_intact());
    return std::pair(placed.output.read(), final_states);
  };
  const auto whole = run([](const auto& args) { JRT_REQUIRE_OK(prefill(args, Cpu{})); });
  const auto in_steps = run([](const auto& args) { prefill_in_steps(args); });
  // Rows of no sequence hold what they held.
  const auto bits = [](const auto& tensor, std::size_t i) {
    std::uint64_t of = 0;
    std::memcpy(&of, &tensor.values[i], sizeof tensor.values[i]);
    return of;
  };
  for (std::size_t i = 0; i < whole.first.values.size(); ++i) {
    const double difference = std::abs(whole.first.values[i] - in_steps.first.values[i]);
    REQUIRE((difference < 1e-9 || bits(whole.first, i) == bits(in_steps.first, i)));
  }
  for (std::int64_t slot = 0; slot < 6; ++slot) {
    const auto a = mixed_of<Config>(whole.second, slot, 2);
    const auto b = mixed_of<Config>(in_steps.second, slot, 2);
    if (a != b) {
      check_same_state<Config>(b, a);
    }
  }
}

TEST_CASE("a prefill in steps is one at once") {
  Random random(5);
  for (int i = 0; i < 300; ++i) {
    CAPTURE(i);
    check_case<Mixed<double, 7>>(random);
    check_case<Mixed<double, 0>>(random);
    check_case<MixedCausal<double, 13>>(random);
  }
}

}  // namespace
}  // namespace jrt::test
