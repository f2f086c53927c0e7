// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "support/backend.hpp"
#include "support/linear_problem.hpp"

/// Random calls against the oracle in double.
namespace jrt::test {

class Random {
 public:
  explicit Random(unsigned seed) : generator_(seed) {}

  /// From `low` to `high`, both included.
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(generator_);
  }
  bool chance(double probability) { return std::bernoulli_distribution(probability)(generator_); }

 private:
  std::mt19937_64 generator_;
};

/// A number of tokens: often at an edge of something, sometimes none.
inline std::int64_t random_length(Random& random, std::int64_t most) {
  const auto edges = edge_lengths();
  const std::int64_t length =
      random.chance(0.4) ? edges[static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(edges.size()) - 1))]
                         : random.between(0, most);
  return length < most ? length : most;
}

template <class Config>
Problem<Config> random_problem(Random& random, std::int64_t max_tokens) {
  constexpr bool reads_encoder = Config::Mask::reads_encoder;
  ProblemShape shape;
  shape.heads = random.between(1, 3);
  shape.query_heads = shape.heads * (random.chance(0.3) ? random.between(2, 4) : 1);
  const auto seed = static_cast<unsigned>(random.between(1, 1 << 30));
  const auto as_int = [](std::int64_t number) { return static_cast<std::int32_t>(number); };
  SequenceLists lists;
  if (random.chance(0.4)) {
    // Packed sequences.
    lists.count = random.between(1, 5);
    lists.cu_seqlens = {0};
    lists.cu_encoder_seqlens = {0};
    for (std::int64_t b = 0; b < lists.count; ++b) {
      const std::int64_t tokens = random_length(random, max_tokens / 2);
      const std::int64_t prefix = reads_encoder ? random.between(0, tokens) : 0;
      lists.cu_seqlens.push_back(lists.cu_seqlens.back() + as_int(tokens));
      lists.cu_encoder_seqlens.push_back(lists.cu_encoder_seqlens.back() + as_int(prefix));
      if (random.chance(0.3) || !lists.prefix_lens.empty()) {
        lists.prefix_lens.resize(static_cast<std::size_t>(b), 0);
        lists.prefix_lens.push_back(as_int(random.between(0, prefix)));
      }
      lists.left_pads.push_back(random.chance(0.2) ? as_int(random.between(0, tokens)) : 0);
    }
    shape.batch = 1;
    shape.tokens = lists.cu_seqlens.back();
    shape.prefix = lists.cu_encoder_seqlens.back();
  } else {
    shape.batch = random.between(1, 4);
    shape.tokens = random_length(random, max_tokens);
    shape.prefix = reads_encoder ? random.between(0, shape.tokens) : 0;
    const bool lengths = random.chance(0.3);
    const bool prefixes = lengths || random.chance(0.3);
    const bool pads = random.chance(0.3);
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      const std::int64_t tokens = lengths ? random.between(0, shape.tokens) : shape.tokens;
      if (lengths) {
        lists.seq_lens.push_back(as_int(tokens));
      }
      if (prefixes) {
        lists.prefix_lens.push_back(as_int(random.between(0, std::min(tokens, shape.prefix))));
      }
      if (pads) {
        lists.left_pads.push_back(as_int(random.between(0, tokens)));
      }
    }
  }
  Problem<Config> problem(shape, seed);
  problem.sequences = lists;
  return problem;
}

/// `cases` random prefills, each followed by a few decode steps from its final state; the worst error of outputs.
template <class Backend, class Config>
double fuzz(unsigned seed, int cases, std::int64_t max_tokens) {
  Random random(seed);
  double worst = 0;
  for (int i = 0; i < cases; ++i) {
    CAPTURE(i);
    Problem<Config> problem = random_problem<Config>(random, max_tokens);
    const std::int64_t slots = problem.sequence_count();
    const std::int64_t heads = problem.key.shape.heads;
    StateNumbers<Config> initial;
    if (random.chance(0.4)) {
      initial = random_states<Config>(slots, heads, static_cast<unsigned>(random.between(1, 1000)));
    }
    const auto layout = all_layouts[random.between(0, 3)];
    auto results = run_prefill<Backend>(problem, initial, {.layout = layout});
    const double error = relative_error(results.output.values, reference_output(problem, initial).values);
    worst = error > worst ? error : worst;
    CHECK(error <= output_tolerance<Config>());

    // Decode from a dense, full-length prompt, against the oracle on the longer sequence.
    const bool plain = problem.sequences.cu_seqlens.empty() && problem.sequences.seq_lens.empty() &&
                       problem.sequences.prefix_lens.empty() && problem.sequences.left_pads.empty();
    if (plain && !Config::Mask::reads_future) {
      const std::int64_t tokens = problem.query.shape.tokens;
      const std::int64_t steps = random.between(1, 4);
      const Problem<Config> more({problem.query.shape.batch, steps, 0, heads, problem.query.shape.heads},
                                 static_cast<unsigned>(random.between(1, 1000)));
      const auto outputs = run_decode<Backend>(more, 0, steps, results.states, random.between(1, steps));
      Problem<Config> whole = problem;
      for (auto [to, from] : {std::pair{&whole.query, &more.query}, {&whole.key, &more.key}, {&whole.value, &more.value}}) {
        *to = joined_tokens(*to, *from);
      }
      const auto expected = token_slice(reference_output(whole, initial), tokens, steps);
      CHECK(relative_error(outputs.values, expected.values) <= output_tolerance<Config>());
    }
  }
  return worst;
}

}  // namespace jrt::test
