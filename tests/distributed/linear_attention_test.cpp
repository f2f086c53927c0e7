// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cstdint>
#include <jrt/backward.hpp>
#include <jrt/distributed/cpu.hpp>
#include <jrt/prefill.hpp>
#include <jrt/reference/linear_attention.hpp>
#include <jrt/reference/linear_attention_backward.hpp>
#include <vector>

#include "distributed/pieces.hpp"

namespace jrt::test {
namespace {

constexpr std::int64_t heads = 2;
constexpr std::int64_t query_heads = 4;
constexpr int dim = 4;
constexpr int value_dim = 5;

template <class E, class MaskT, class SplitT>
struct Operator : PrefixLinearAttention<E, dim, value_dim> {
  using Mask = MaskT;
  using Split = SplitT;
};

/// Everything that a prefill and its backward pass read and write, packed.
template <class Config>
struct Batch {
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  using T = detail::ConfigCompute<Config>;
  using GradientFormat = StateGradientFormatOf<Config>;
  Tensor<E> query, key, value, key_encoder, value_encoder, output, output_gradient;
  Tensor<T> denominators;
  Tensor<E> query_gradient, key_gradient, value_gradient, key_encoder_gradient, value_encoder_gradient;
  StatePool<Format> initial, final_states;
  StatePool<GradientFormat> final_gradient, initial_gradient;

  explicit Batch(const Pieces& pieces, bool filled = true)
      : Batch(pieces.offsets().back(), pieces.offsets(true).back(), pieces.sequences(), filled) {}
  Batch(std::int64_t tokens, std::int64_t encoder, std::int64_t sequences, bool filled) {
    const auto make = [&](auto& tensor, std::int64_t rows, std::int64_t of_heads, std::int64_t width, unsigned seed) {
      using Value = typename std::decay_t<decltype(tensor.values)>::value_type;
      const TensorShape shape{1, rows, of_heads, width};
      tensor = seed != 0 && filled ? random_tensor<Value>(shape, seed, 0.6) : zero_tensor<Value>(shape);
    };
    make(query, tokens, query_heads, dim, 1);
    make(key, tokens, heads, dim, 2);
    make(value, tokens, heads, value_dim, 3);
    make(key_encoder, encoder, heads, dim, 4);
    make(value_encoder, encoder, heads, value_dim, 5);
    make(output, tokens, query_heads, value_dim, 0);
    make(output_gradient, tokens, query_heads, value_dim, 6);
    make(denominators, tokens, query_heads, 1, 0);
    make(query_gradient, tokens, query_heads, dim, 0);
    make(key_gradient, tokens, heads, dim, 0);
    make(value_gradient, tokens, heads, value_dim, 0);
    make(key_encoder_gradient, encoder, heads, dim, 0);
    make(value_encoder_gradient, encoder, heads, value_dim, 0);
    JRT_REQUIRE_OK(StatePool<Format>::allocate(sequences, heads, initial));
    JRT_REQUIRE_OK(StatePool<Format>::allocate(sequences, heads, final_states));
    JRT_REQUIRE_OK(StatePool<GradientFormat>::allocate(sequences, heads, final_gradient));
    JRT_REQUIRE_OK(StatePool<GradientFormat>::allocate(sequences, heads, initial_gradient));
    if (filled) {
      fill(initial, 8);
      fill(final_gradient, 9);
    }
  }

  template <class F>
  static void fill(StatePool<F>& pool, unsigned seed) {
    const auto view = pool.view();
    const std::int64_t count = view.slots * heads * F::head_elements;
    const auto values = random_tensor<typename F::Scalar>({1, 1, 1, count}, seed, 0.3).values;
    for (std::int64_t i = 0; i < count; ++i) {  // the padding stays 0
      const double number = values[static_cast<std::size_t>(i)];
      view.data[i] = static_cast<typename F::Scalar>(i % F::head_elements < F::head_values ? number * number : 0);
    }
  }

  PrefillArgs<Config> forward() {
    PrefillArgs<Config> args;
    args.query = view_of(query);
    args.key = view_of(key);
    args.value = view_of(value);
    if (Config::Mask::reads_encoder && key_encoder.shape.tokens > 0) {
      args.key_encoder = view_of(key_encoder);
      args.value_encoder = view_of(value_encoder);
    }
    args.output = view_of(output);
    args.initial_state = {initial.view()};
    args.final_state = {final_states.view()};
    args.denominators = view_of(denominators);
    return args;
  }
  BackwardArgs<Config> backward() {
    BackwardArgs<Config> args;
    args.query = view_of(query);
    args.key = view_of(key);
    args.value = view_of(value);
    args.output = view_of(output);
    args.denominators = view_of(denominators);
    args.initial_state = {initial.view()};
    args.output_gradient = view_of(output_gradient);
    args.final_state_gradient = {final_gradient.view()};
    args.initial_state_gradient = {initial_gradient.view()};
    args.query_gradient = view_of(query_gradient);
    args.key_gradient = view_of(key_gradient);
    args.value_gradient = view_of(value_gradient);
    if (Config::Mask::reads_encoder && key_encoder.shape.tokens > 0) {
      args.key_encoder = view_of(key_encoder);
      args.value_encoder = view_of(value_encoder);
      args.key_encoder_gradient = view_of(key_encoder_gradient);
      args.value_encoder_gradient = view_of(value_encoder_gradient);
    }
    return args;
  }
};

/// The calls on one rank that has the whole, or what the oracle says.
template <class Config>
Batch<Config> on_one_device(const Pieces& pieces, bool oracle = false) {
  Batch<Config> batch(pieces);
  const auto offsets = pieces.offsets();
  const auto encoder_offsets = pieces.offsets(true);
  std::vector<std::int32_t> positions(static_cast<std::size_t>(pieces.sequences()));
  std::vector<std::uint8_t> continues = pieces.has_initial_state;
  continues.resize(static_cast<std::size_t>(pieces.sequences()));
  const auto set = [&](auto& args) {
    args.sequences.count = pieces.sequences();
    args.sequences.cu_seqlens = offsets.data();
    args.sequences.cu_encoder_seqlens = args.key_encoder.tokens > 0 ? encoder_offsets.data() : nullptr;
    args.sequences.first_positions = positions.data();
    args.has_initial_state = continues.data();
  };
  auto forward = batch.forward();
  set(forward);
  auto backward_args = batch.backward();
  set(backward_args);
  if (oracle) {
    reference::prefill(forward);
    reference::backward(backward_args);
  } else {
    JRT_REQUIRE_OK(prefill(forward, Cpu{}));
    JRT_REQUIRE_OK(backward(backward_args, Cpu{}));
  }
  return batch;
}

/// What ranks have: pieces of `given`.
template <class Config>
std::vector<Batch<Config>> divided(const Pieces& pieces) {
  const Batch<Config> given(pieces);
  std::vector<Batch<Config>> parts;
  for (int r = 0; r < pieces.ranks; ++r) {
    Batch<Config>& part =
        parts.emplace_back(pieces.local_tokens(r), pieces.local_tokens(r, true), pieces.sequences(), false);
    part.query = pieces.of_rank(given.query, r);
    part.key = pieces.of_rank(given.key, r);
    part.value = pieces.of_rank(given.value, r);
    part.key_encoder = pieces.of_rank(given.key_encoder, r, true);
    part.value_encoder = pieces.of_rank(given.value_encoder, r, true);
    part.output_gradient = pieces.of_rank(given.output_gradient, r);
    Batch<Config>::fill(part.initial, 8);
    Batch<Config>::fill(part.final_gradient, 9);
  }
  return parts;
}

/// A rank's calls, forward and backward.
template <class Config, class C, class On>
Status run_rank(Batch<Config>& part, const Pieces& pieces, C& communicator, const On& on) {
  ContextPlan<Config> plan;
  Status status = ContextPlan<Config>::make(pieces.layout(), communicator.rank(), on, plan, heads);
  if (!status.ok()) {
    return status;
  }
  const ContextPrefillArgs<Config> forward{part.forward(), &plan};
  OwnWorkspace workspace(prefill_workspace_bytes(forward, on));
  int times = 0;
  const auto meanwhile = [&] {
    ++times;
    return Status();
  };
  status = prefill(forward, meanwhile, communicator, workspace.view(), on);
  if (!status.ok() || times != 1) {
    return status.ok() ? Status::error(StatusCode::corrupt_data, "meanwhile was called %d times", times) : status;
  }
  const ContextBackwardArgs<Config> gradients{part.backward(), &plan};
  OwnWorkspace more(backward_workspace_bytes(gradients, on));
  return backward(gradients, communicator, more.view(), on);
}

/// The same on ranks; states are those of the ranks that have a sequence's first and last tokens.
template <class Config, class C = ThreadCommunicator, class On = Cpu<>>
Batch<Config> on_ranks(const Pieces& pieces, const On& on = {}) {
  using Format = StateFormatOf<Config>;
  Batch<Config> whole(pieces);
  std::vector<Batch<Config>> parts = divided<Config>(pieces);
  const auto results = run_ranks<C>(pieces.ranks, [&](C& communicator) {
    return run_rank(parts[static_cast<std::size_t>(communicator.rank())], pieces, communicator, on);
  });
  JRT_REQUIRE_RANKS_OK(results);
  for (int r = 0; r < pieces.ranks; ++r) {
    Batch<Config>& part = parts[static_cast<std::size_t>(r)];
    pieces.put(part.output, r, whole.output);
    pieces.put(part.denominators, r, whole.denominators);
    pieces.put(part.query_gradient, r, whole.query_gradient);
    pieces.put(part.key_gradient, r, whole.key_gradient);
    pieces.put(part.value_gradient, r, whole.value_gradient);
    pieces.put(part.key_encoder_gradient, r, whole.key_encoder_gradient, true);
    pieces.put(part.value_encoder_gradient, r, whole.value_encoder_gradient, true);
    for (std::int64_t g = 0; g < pieces.sequences(); ++g) {
      if (!pieces.any_tokens(r, g)) {
        continue;
      }
      std::copy_n(part.final_states.view().head(g, 0), heads * Format::head_elements, whole.final_states.view().head(g, 0));
      if (pieces.layout().first_token(r, g) == 0) {
        std::copy_n(part.initial_gradient.view().head(g, 0), heads * Batch<Config>::GradientFormat::head_elements,
                    whole.initial_gradient.view().head(g, 0));
      }
    }
  }
  return whole;
}

template <class Format>
std::vector<typename Format::Scalar> numbers(StatePool<Format>& pool) {
  const auto view = pool.view();
  return {view.data, view.data + view.slots * view.heads * Format::head_elements};
}

/// Largest relative error of all results; 0 only if all are equal.
template <class Config>
void compare(const Pieces& pieces, Batch<Config> actual, double bound, double gradient_bound) {
  auto expected = on_one_device<Config>(pieces);
  CHECK(relative_error(actual.output.values, expected.output.values) <= bound);
  CHECK(relative_error(actual.denominators.values, expected.denominators.values) <= bound);
  CHECK(relative_error(numbers(actual.final_states), numbers(expected.final_states)) <= bound);
  CHECK(relative_error(actual.query_gradient.values, expected.query_gradient.values) <= gradient_bound);
  CHECK(relative_error(actual.key_gradient.values, expected.key_gradient.values) <= gradient_bound);
  CHECK(relative_error(actual.value_gradient.values, expected.value_gradient.values) <= gradient_bound);
  if (Config::Mask::reads_encoder) {
    CHECK(relative_error(actual.key_encoder_gradient.values, expected.key_encoder_gradient.values) <= gradient_bound);
    CHECK(relative_error(actual.value_encoder_gradient.values, expected.value_encoder_gradient.values) <= gradient_bound);
  }
  for (std::int64_t g = 0; g < pieces.sequences(); ++g) {
    if (pieces.layout().continues(g)) {
      using F = typename Batch<Config>::GradientFormat;
      const auto of = [&](Batch<Config>& batch) {
        const auto* const begin = batch.initial_gradient.view().head(g, 0);
        return std::vector<typename F::Scalar>(begin, begin + heads * F::head_elements);
      };
      CHECK(relative_error(of(actual), of(expected)) <= gradient_bound);
    }
  }
}

template <class Config>
void compare(const Pieces& pieces, double bound, double gradient_bound) {
  compare(pieces, on_ranks<Config>(pieces), bound, gradient_bound);
}

/// One sequence on 1, 2, 3 and 4 ranks, with an encoder region that reaches into the second rank; with and without a state.
std::vector<Pieces> one_sequence() {
  return {
      {1, {200}, {130}},
      {2, {120, 80}, {100, 30}, {1}},
      {3, {1, 199, 0}, {0, 0, 130}},
      {4, {50, 50, 50, 50}, {50, 50, 30, 0}, {1}},
      {4, {0, 150, 0, 50}, {100, 0, 30, 0}},
  };
}

/// Several: ranks meet inside of sequences, some have many, one sequence is everywhere, others are empty.
std::vector<Pieces> packed() {
  return {
      {2, {60, 40, 0, /**/ 0, 30, 25}, {20, 10, 0, /**/ 0, 0, 5}, {1, 0, 1}},
      {3,
       {10, 0, 0, 70, /**/ 0, 0, 9, 50, /**/ 5, 0, 0, 60},
       {3, 0, 0, 60, /**/ 0, 0, 2, 0, /**/ 4, 0, 0, 7},
       {0, 0, 1, 1}},
      {4, {33, 5, /**/ 0, 70, /**/ 0, 11, /**/ 0, 12}, {}, {1, 1}},
  };
}

TEST_CASE_TEMPLATE("ranks agree with one device", Config, Operator<double, PrefixMask, OccupancySplit<>>,
                   Operator<double, PrefixMask, LengthSplit<48>>) {
  for (const Pieces& pieces : one_sequence()) {
    CAPTURE(pieces.ranks);
    compare<Config>(pieces, 1e-13, 1e-12);
  }
  for (const Pieces& pieces : packed()) {
    CAPTURE(pieces.ranks);
    compare<Config>(pieces, 1e-13, 1e-12);
  }
}

TEST_CASE("and with the formula") {
  using Config = Operator<double, PrefixMask, OccupancySplit<>>;
  const Pieces pieces = packed()[1];
  auto expected = on_one_device<Config>(pieces, true);
  auto actual = on_ranks<Config>(pieces);
  CHECK(relative_error(actual.output.values, expected.output.values) <= 1e-12);
  CHECK(relative_error(actual.query_gradient.values, expected.query_gradient.values) <= 1e-10);
  CHECK(relative_error(actual.key_gradient.values, expected.key_gradient.values) <= 1e-10);
  CHECK(relative_error(actual.value_gradient.values, expected.value_gradient.values) <= 1e-10);
  CHECK(relative_error(actual.key_encoder_gradient.values, expected.key_encoder_gradient.values) <= 1e-10);
  CHECK(relative_error(actual.value_encoder_gradient.values, expected.value_encoder_gradient.values) <= 1e-10);
}

TEST_CASE("so does the mask that reads all tokens") {
  using Config = Operator<double, FullMask, LengthSplit<48>>;
  for (Pieces pieces : {Pieces{2, {120, 80}, {}, {1}}, Pieces{3, {30, 0, 55}}, Pieces{2, {20, 9, 0, 31}, {}, {0, 1}}}) {
    CAPTURE(pieces.ranks);
    compare<Config>(pieces, 1e-13, 1e-12);
  }
}

TEST_CASE("a rank's device divides its pieces, and the sums of others are one each") {
  using Config = Operator<double, PrefixMask, OccupancySplit<16>>;
  FourWorkers workers;
  const Cpu on(workers);
  std::vector<Pieces> all = one_sequence();
  for (const Pieces& pieces : packed()) {
    all.push_back(pieces);
  }
  all.push_back({2, {1000, 700}, {600, 500}, {1}});
  all.push_back({1, {900, 500}, {300, 0}, {1, 0}});  // without others
  for (const Pieces& pieces : all) {
    CAPTURE(pieces.ranks);
    compare(pieces, on_ranks<Config>(pieces, on), 1e-13, 1e-12);
    compare(pieces, on_ranks<Config, WorkFirst>(pieces, on), 1e-13, 1e-12);
  }
  // What is sent does not grow with the segments.
  std::int64_t tokens[2] = {1000, 700};
  ContextLayout layout;
  layout.ranks = 2;
  layout.tokens = tokens;
  ContextPlan<Config> plan;
  JRT_REQUIRE_OK(ContextPlan<Config>::make(layout, 0, on, plan, 1));
  CHECK(plan.details().segments == 4);
  CHECK(plan.exchanged_bytes(heads) == static_cast<std::int64_t>(StateGradientFormatOf<Config>::slot_bytes(heads)));
}

TEST_CASE("segments of fixed length give the same bits on any number of ranks") {
  using Config = Operator<float, PrefixMask, LengthSplit<96>>;
  const std::int64_t tokens = 1000;  // segments are not all of one length
  const std::int64_t prefix = 500;
  for (const int ranks : {1, 2, 3, 4}) {
    CAPTURE(ranks);
    Pieces pieces{ranks,
                  std::vector<std::int64_t>(static_cast<std::size_t>(ranks)),
                  std::vector<std::int64_t>(static_cast<std::size_t>(ranks)),
                  {1}};
    divide_at_segments<Config>(tokens, ranks, Cpu{}, pieces.tokens.data());
    divide_at_segments<Config>(prefix, ranks, Cpu{}, pieces.encoder_tokens.data());
    compare<Config>(pieces, 0, 0);
  }
}

TEST_CASE_TEMPLATE("a rank that fails leaves nobody waiting", Config, Operator<double, PrefixMask, OccupancySplit<>>,
                   Operator<double, FullMask, LengthSplit<48>>) {
  Pieces pieces{2, {120, 80}, {100, 30}, {1}};
  if (!Config::Mask::reads_encoder) {
    pieces.encoder_tokens.clear();
  }
  check_failures([&] {
    std::vector<Batch<Config>> parts = divided<Config>(pieces);
    return run_ranks<Failing>(2, [&](Failing& communicator) {
      return run_rank(parts[static_cast<std::size_t>(communicator.rank())], pieces, communicator, Cpu{});
    });
  });
}

}  // namespace
}  // namespace jrt::test
