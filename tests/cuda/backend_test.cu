// SPDX-License-Identifier: Apache-2.0
// What only the CUDA backend has: arrays that the host cannot see, streams, graphs.
#include <jrt/cuda.cuh>

#include <doctest/doctest.h>

#include <jrt/decode.hpp>
#include <jrt/prefill.hpp>
#include <jrt/state_exchange.hpp>
#include <jrt/state_operations.hpp>
#include <string>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

using Config = Prefix<float, 16, 24>;
using Format = StateFormatOf<Config>;
constexpr std::int64_t heads = 2;

/// A prefill's tensors on the device, and its arguments.
template <class C>
struct Call {
  using E = typename C::Element;
  Placed<Concurrent, E> query, key, value, key_encoder, value_encoder, output;
  Concurrent::Array<float> states;
  PrefillArgs<C> args;

  explicit Call(const Problem<C>& problem, std::int64_t slots)
      : query(problem.query, Layout::bthd),
        key(problem.key, Layout::bthd),
        value(problem.value, Layout::bthd),
        key_encoder(problem.key_encoder, Layout::bthd),
        value_encoder(problem.value_encoder, Layout::bthd),
        output(problem.output_shape(), Layout::bthd),
        states(std::vector<float>(state_numbers<C>(slots, heads), 7.0F)) {
    args.query = query.view();
    args.key = key.view();
    args.value = value.view();
    args.key_encoder = key_encoder.view();
    args.value_encoder = value_encoder.view();
    args.output = output.view();
    args.final_state = {view_pool<StateFormatOf<C>>(states.data(), slots, heads)};
  }
};

template <class Operation>
void refuses(const Operation& operation, const std::string& part) {
  const Status status = operation();
  INFO(std::string(status.message()));
  CHECK(status.code() == StatusCode::invalid_argument);
  CHECK(status.message().find(part) != std::string_view::npos);
}

TEST_CASE("what the host can see is checked before anything is enqueued") {
  const Problem<Config> problem({.batch = 2, .tokens = 10, .prefix = 5});
  Call<Config> call(problem, 2);
  const auto on = Concurrent::execution();
  const auto spoiled = [&](const std::string& part, const auto& spoil) {
    CAPTURE(part);
    auto args = call.args;
    spoil(args);
    refuses([&] { return prefill(args, on); }, part);
  };
  using P = PrefillArgs<Config>;
  spoiled("'query' is null", [](P& a) { a.query.data = nullptr; });
  spoiled("'value' points 2 bytes past an aligned address, but its alignment is 4",
          [](P& a) { a.value.data = reinterpret_cast<const float*>(reinterpret_cast<const char*>(a.value.data) + 2); });
  spoiled("'key' has tokens = 9, but query's is 10", [](P& a) { a.key.tokens = 9; });
  spoiled("'output' has token_stride = 7, but must be at least", [](P& a) { a.output.token_stride = 7; });
  spoiled("'query' has heads = 3", [](P& a) {
    a.query.heads = 3;
    a.output.heads = 3;
  });
  spoiled("'prefix (key_encoder.tokens)[0]' is 11, but must be from 0 to 10", [](P& a) {
    a.key_encoder.tokens = 11;
    a.value_encoder.tokens = 11;
  });
  spoiled("'final_state' has slots = 1, but must be at least 2", [](P& a) { a.final_state.pool.slots = 1; });
  spoiled("'final_state' has heads = 1", [](P& a) { a.final_state.pool.heads = 1; });
  spoiled("'sequences.max_tokens' has value = -1", [](P& a) { a.sequences.max_tokens = -1; });

  using Split = SplitByLength<Config, 64>;
  Call<Split> split(Problem<Split>({.batch = 2, .tokens = 200, .prefix = 5}), 2);
  const std::size_t bytes = prefill_workspace_bytes(split.args, on);
  REQUIRE(bytes > 0);
  refuses([&] { return prefill(split.args, {split.states.data(), bytes - 1}, on); }, "'workspace' has bytes");
  refuses([&] { return prefill(split.args, {nullptr, bytes}, on); }, "'workspace' is null");

  DecodeArgs<Config> step;
  step.query = call.query.view();
  step.key = call.key.view();
  step.value = call.value.view();
  step.output = call.output.view();
  refuses([&] { return decode_step(step, on); }, "decode_step: argument 'source' is null");
  CommitArgs<Config> commit_args;
  refuses([&] { return commit(commit_args, on); }, "commit: argument");
  refuses([&] { return clear_states(call.args.final_state, 3, on); }, "'states' has slots = 2, but must be at least 3");
  std::vector<std::byte> buffer(10);
  refuses([&] { return save_states(call.args.final_state, 2, buffer, on); }, "'buffer' has bytes = 10");
  CHECK(load_states(buffer, call.args.final_state, 2, on).code() == StatusCode::corrupt_data);

  const auto untouched = call.states.read();
  CHECK(untouched == std::vector<float>(untouched.size(), 7.0F));
}

TEST_CASE("a call with more blocks than a launch can have is refused, and the next one is not") {
  // More blocks than a launch can have.
  StatePoolView<Format> pool = view_pool<Format>(reinterpret_cast<float*>(16), std::int64_t{1} << 40, 1);
  const Status status = clear_states<Format>({pool}, std::int64_t{1} << 40, Concurrent::execution());
  CHECK_FALSE(status.ok());
  INFO(std::string(status.message()));
  CHECK(status.message().find("blocks") != std::string_view::npos);
  const Problem<Config> problem({.batch = 1, .tokens = 5, .prefix = 2});
  Call<Config> call(problem, 1);
  JRT_REQUIRE_OK(prefill(call.args, Concurrent::execution()));
}

TEST_CASE_TEMPLATE("arrays with impossible entries do no harm: nothing outside the tensors is touched", C, Config,
                   Causal<BFloat16, 16, 64>) {
  constexpr bool encoder = C::Mask::reads_encoder;
  const Problem<C> problem({.batch = 4, .tokens = 40, .prefix = encoder ? 20 : 0});
  Call<C> call(problem, 4);
  Concurrent::Array<std::int32_t> prefixes({1 << 30, -5, 20, 7});
  Concurrent::Array<std::int32_t> lengths({-1, 1 << 30, 40, 40});
  Concurrent::Array<std::int32_t> pads({3, -9, 1 << 30, 0});
  Concurrent::Array<std::int32_t> slots({0, 1, 2, 99});
  call.args.sequences.seq_lens = lengths.data();
  if (encoder) {
    call.args.sequences.prefix_lens = prefixes.data();
  }
  call.args.sequences.left_pads = pads.data();
  call.args.final_state.slots = slots.data();
  JRT_REQUIRE_OK(prefill(call.args, Concurrent::execution()));
  CHECK(call.output.surroundings_intact());
  const auto output = call.output.read();
  for (const auto y : batch_slice(output, 3).values) {
    CHECK(convert<float>(y) == 0);  // slot 99 is none of the pool's
  }
  const auto states = call.states.read();
  const auto begin = states.begin() + static_cast<std::ptrdiff_t>(3 * states.size() / 4);
  CHECK(std::vector<float>(begin, states.end()) == std::vector<float>(states.size() / 4, 7.0F));
}

/// Captures what `enqueue` enqueues.
template <class Enqueue>
class Graph {
 public:
  explicit Graph(const Enqueue& enqueue) {
    const cudaStream_t stream = Concurrent::execution().stream();
    require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "begin capture");
    enqueue();
    cudaGraph_t graph = nullptr;
    require_cuda(cudaStreamEndCapture(stream, &graph), "end capture");
    require_cuda(cudaGraphInstantiate(&executable_, graph, 0), "instantiate");
    require_cuda(cudaGraphDestroy(graph), "destroy");
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { require_cuda(cudaGraphExecDestroy(executable_), "destroy"); }

  void replay() const {
    require_cuda(cudaGraphLaunch(executable_, Concurrent::execution().stream()), "replay");
    require_cuda(cudaDeviceSynchronize(), "synchronize");
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

template <class T>
void overwrite(Concurrent::Array<T>& array, const std::vector<T>& values) {
  require_cuda(cudaMemcpy(array.data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
  require_cuda(cudaDeviceSynchronize(), "synchronize");
}

TEST_CASE("prefill and decoding replay from a graph, with lengths, slots and accepted counts as they are then") {
  using C = SplitByLength<Prefix<BFloat16, 16, 64>, 128>;
  using F = StateFormatOf<C>;
  Problem<C> problem({.batch = 3, .tokens = 300, .prefix = 200});
  Call<C> call(problem, 5);
  const auto on = Concurrent::execution();
  Concurrent::Array<std::int32_t> slots({0, 1, 2});
  Concurrent::Array<std::int32_t> lengths({300, 300, 300});
  Concurrent::Array<std::int32_t> prefixes({200, 200, 200});
  Concurrent::Array<std::int32_t> accepted({0, 0, 0});
  call.args.final_state.slots = slots.data();
  call.args.sequences.seq_lens = lengths.data();
  call.args.sequences.prefix_lens = prefixes.data();
  const std::size_t bytes = prefill_workspace_bytes(call.args, on);
  Concurrent::Array<unsigned char> workspace(std::vector<unsigned char>(bytes, 0xff));

  // One more token, committed; then three staged ones, of which some are.
  Placed<Concurrent, BFloat16> query(token_slice(problem.query, 0, 3), Layout::bthd);
  Placed<Concurrent, BFloat16> key(token_slice(problem.key, 0, 3), Layout::bthd);
  Placed<Concurrent, BFloat16> value(token_slice(problem.value, 0, 3), Layout::bthd);
  Placed<Concurrent, BFloat16> output(TensorShape{3, 3, 2, 64}, Layout::bthd);
  DecodeArgs<C> step;
  step.query = query.view().slice_tokens(0, 1);
  step.key = key.view().slice_tokens(0, 1);
  step.value = value.view().slice_tokens(0, 1);
  step.output = output.view().slice_tokens(0, 1);
  step.source = call.args.final_state;
  StagingView<C> staging{nullptr, 3, 3, heads};
  Concurrent::Array<BFloat16> staged(std::vector<BFloat16>(staging.bytes() / sizeof(BFloat16)));
  staging.data = staged.data();
  StagedStepArgs<C> draft;
  draft.query = query.view();
  draft.key = key.view();
  draft.value = value.view();
  draft.output = output.view();
  draft.state = call.args.final_state;
  draft.staging = staging;
  CommitArgs<C> commit_args;
  commit_args.staging = staging;
  commit_args.accepted_tokens = accepted.data();
  commit_args.source = call.args.final_state;

  const auto enqueue = [&] {
    JRT_REQUIRE_OK(prefill(call.args, {workspace.data(), bytes}, on));
    JRT_REQUIRE_OK(decode_step(step, {}, on));
    JRT_REQUIRE_OK(staged_step(draft, {}, on));
    JRT_REQUIRE_OK(commit(commit_args, {}, on));
  };
  const Graph graph(enqueue);
  const struct {
    std::vector<std::int32_t> slots, lengths, prefixes, accepted;
  } replays[] = {{{0, 1, 2}, {300, 300, 300}, {200, 200, 200}, {3, 0, 1}},
                 {{4, skip_slot, 3}, {300, 0, 129}, {5, 0, 128}, {1, 3, 2}},
                 {{2, 0, 1}, {1, 65, 256}, {0, 64, 200}, {0, 1, 3}}};
  for (const auto& replay : replays) {
    overwrite(slots, replay.slots);
    overwrite(lengths, replay.lengths);
    overwrite(prefixes, replay.prefixes);
    overwrite(accepted, replay.accepted);
    enqueue();
    const auto expected_output = call.output.read();
    const auto expected_steps = output.read();
    const auto expected_states = call.states.read();
    overwrite(call.states, std::vector<float>(state_numbers<C>(5, heads), 7.0F));
    require_cuda(cudaMemset(call.args.output.data, 0xff, element_count(problem.output_shape()) * sizeof(BFloat16)),
                 "poison");
    require_cuda(cudaMemset(step.output.data, 0xff, 3 * 3 * 2 * 64 * sizeof(BFloat16)), "poison");
    require_cuda(cudaMemset(staging.data, 0xff, staging.bytes()), "poison");
    require_cuda(cudaDeviceSynchronize(), "synchronize");
    graph.replay();
    CHECK(call.output.read() == expected_output);
    CHECK(output.read() == expected_steps);
    const auto states = call.states.read();
    for (std::int64_t b = 0; b < 3; ++b) {
      const std::int64_t slot = replay.slots[static_cast<std::size_t>(b)];
      if (slot != skip_slot) {
        const auto each = static_cast<std::ptrdiff_t>(state_numbers<C>(1, heads));
        const auto used = [&](const std::vector<float>& all) {
          return used_numbers<C>(StateNumbers<C>(all.begin() + slot * each, all.begin() + (slot + 1) * each));
        };
        CHECK(used(states) == used(expected_states));
      }
    }
  }
  static_assert(F::rows == 153);
}

TEST_CASE_TEMPLATE("the same bits from run to run", C, Prefix<float, 16, 64>, Prefix<BFloat16, 16, 64>,
                   Prefix<Half, 16, 112>, Full<BFloat16, 16, 64>) {
  const std::int64_t prefix = C::Mask::reads_encoder ? 1000 : 0;
  const Problem<C> problem({.batch = 1, .tokens = 2500, .prefix = prefix});
  REQUIRE(C::Split::segments(2500, 2, Concurrent::workers()) > 1);
  const auto first = run_prefill<Concurrent>(problem);
  for (int repeat = 0; repeat < 10; ++repeat) {
    const auto again = run_prefill<Concurrent>(problem);
    CHECK(again.output == first.output);
    CHECK(again.states == first.states);
  }
}

TEST_CASE("a tight bound on the lengths makes the workspace smaller and changes nothing") {
  using C = SplitByLength<Prefix<float, 16, 24>, 64>;
  Problem<C> problem({.batch = 1, .tokens = 800, .prefix = 400});
  problem.sequences.count = 4;
  problem.sequences.cu_seqlens = {0, 200, 400, 600, 800};
  problem.sequences.cu_encoder_seqlens = {0, 100, 200, 300, 400};
  const auto expected = run_prefill<Concurrent>(problem);
  Call<C> call(problem, 4);
  PlacedSequences<Concurrent> sequences(problem.sequences);
  call.args.sequences = sequences.view();
  const auto on = Concurrent::execution();
  const std::size_t loose = prefill_workspace_bytes(call.args, on);
  call.args.sequences.max_tokens = 200;
  CHECK(prefill_workspace_bytes(call.args, on) < loose / 2);
  JRT_REQUIRE_OK(prefill(call.args, on));
  CHECK(call.output.read() == expected.output);
}

}  // namespace
}  // namespace jrt::test
