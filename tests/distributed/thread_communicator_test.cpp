// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <jrt/distributed/context_layout.hpp>
#include <jrt/distributed/cpu.hpp>
#include <memory>
#include <string>
#include <vector>

#include "distributed/pieces.hpp"

namespace jrt::test {
namespace {

static_assert(Communicator<ThreadCommunicator, Cpu<>>);

std::unique_ptr<ThreadGroup> group_of(int ranks, int time_limit_ms) {
  std::unique_ptr<ThreadGroup> group;
  JRT_REQUIRE_OK(ThreadGroup::make(ranks, std::chrono::milliseconds(time_limit_ms), group));
  return group;
}

/// Runs `rank_function(communicator)` on each rank of a group.
template <class Function>
std::vector<Status> on_group(ThreadGroup& group, const Function& rank_function) {
  std::vector<Status> results(static_cast<std::size_t>(group.size()));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < group.size(); ++rank) {
    threads.emplace_back([&, rank] {
      ThreadCommunicator communicator(group, rank);
      results[static_cast<std::size_t>(rank)] = rank_function(communicator);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return results;
}

TEST_CASE("ranks gather and exchange, in order, many times") {
  const auto group = group_of(4, 20000);
  const auto results = on_group(*group, [](ThreadCommunicator& communicator) {
    const int rank = communicator.rank();
    Status status;
    for (int round = 0; status.ok() && round < 200; ++round) {
      std::int32_t all[4] = {-1, -1, -1, -1};
      all[rank] = 10 * rank + round;
      status = communicator.all_gather(&all[rank], all, sizeof(std::int32_t), Cpu{});
      for (int from = 0; status.ok() && from < 4; ++from) {
        if (all[from] != 10 * from + round) {
          return Status::error(StatusCode::corrupt_data, "rank %d has %d of rank %d", rank, all[from], from);
        }
      }
      // Each sends its number to all on the right.
      std::int32_t received[4] = {};
      std::vector<OutgoingBytes> outgoing;
      std::vector<IncomingBytes> incoming;
      for (int other = 0; other < 4; ++other) {
        if (other > rank) {
          outgoing.push_back({other, &all[rank], sizeof(std::int32_t)});
        } else if (other < rank) {
          incoming.push_back({other, &received[other], sizeof(std::int32_t)});
        }
      }
      if (status.ok()) {
        status = communicator.exchange(outgoing, incoming, Cpu{});
      }
      for (int from = 0; status.ok() && from < rank; ++from) {
        if (received[from] != 10 * from + round) {
          return Status::error(StatusCode::corrupt_data, "rank %d received %d from rank %d", rank, received[from], from);
        }
      }
    }
    return status;
  });
  JRT_REQUIRE_RANKS_OK(results);
}

TEST_CASE("a rank that never calls ends the waiting of the others, within the time limit") {
  const auto group = group_of(3, 100);
  const auto begin = std::chrono::steady_clock::now();
  const auto results = on_group(*group, [](ThreadCommunicator& communicator) {
    std::int32_t all[3] = {};
    return communicator.rank() == 1 ? Status() : communicator.all_gather(&all[communicator.rank()], all, 4, Cpu{});
  });
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(10));
  for (const int rank : {0, 2}) {
    CHECK(results[static_cast<std::size_t>(rank)].code() == StatusCode::device_error);
    CHECK(results[static_cast<std::size_t>(rank)].message().find("has waited 100 ms for rank 1") != std::string_view::npos);
  }
  // Later calls fail at once, until the group begins anew.
  std::int32_t one = 0;
  std::int32_t all[3] = {};
  CHECK_FALSE(ThreadCommunicator(*group, 1).all_gather(&one, all, 4, Cpu{}).ok());
  group->reset();
  JRT_REQUIRE_RANKS_OK(on_group(*group, [](ThreadCommunicator& communicator) {
    std::int32_t gathered[3] = {};
    return communicator.all_gather(&gathered[communicator.rank()], gathered, 4, Cpu{});
  }));
}

TEST_CASE("ranks that disagree on sizes are told") {
  const auto group = group_of(2, 20000);
  const auto results = on_group(*group, [](ThreadCommunicator& communicator) {
    std::int64_t all[2] = {};
    const std::size_t bytes = communicator.rank() == 0 ? 4 : 8;
    return communicator.all_gather(&all[communicator.rank()], all, bytes, Cpu{});
  });
  CHECK(results[0].code() == StatusCode::invalid_argument);
  CHECK(results[1].code() == StatusCode::invalid_argument);
}

using Config = PrefixLinearAttention<double, 4, 4>;

/// Half of 20 tokens on either rank; rank 1's key has one too few if it is to fail.
Status prefill_half(ThreadCommunicator& communicator, bool fails, bool aborts) {
  const std::int64_t tokens[2] = {10, 10};
  ContextLayout layout;
  layout.ranks = 2;
  layout.tokens = tokens;
  ContextPlan<Config> plan;
  Status status = ContextPlan<Config>::make(layout, communicator.rank(), Cpu{}, plan);
  if (!status.ok()) {
    return status;
  }
  auto input = random_tensor<double>({1, 10, 1, 4}, 5);
  auto output = zero_tensor<double>({1, 10, 1, 4});
  ContextPrefillArgs<Config> args;
  args.plan = &plan;
  args.local.query = view_of(input);
  args.local.key = view_of(input);
  args.local.value = view_of(input);
  args.local.output = view_of(output);
  if (fails && communicator.rank() == 1) {
    args.local.key = args.local.key.slice_tokens(0, 9);
  }
  OwnWorkspace workspace(prefill_workspace_bytes(args, Cpu{}));
  status = prefill(args, communicator, workspace.view(), Cpu{});
  if (!status.ok() && aborts) {
    communicator.abort();
  }
  return status;
}

TEST_CASE("a failing rank of a prefill aborts, and the other one gets an error, too") {
  const auto group = group_of(2, 60000);
  const auto begin = std::chrono::steady_clock::now();
  const auto results =
      on_group(*group, [](ThreadCommunicator& communicator) { return prefill_half(communicator, true, true); });
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(30));
  CHECK(results[1].code() == StatusCode::invalid_argument);
  CHECK(results[1].message() ==
        "prefill: argument 'local.key' has tokens = 9, but what the plan's layout gives this rank is 10.");
  CHECK(results[0].code() == StatusCode::device_error);
  CHECK(results[0].message().find("has called abort") != std::string_view::npos);
}

TEST_CASE("without abort, it does after the time limit") {
  const auto group = group_of(2, 100);
  const auto results =
      on_group(*group, [](ThreadCommunicator& communicator) { return prefill_half(communicator, true, false); });
  CHECK(results[0].code() == StatusCode::device_error);
  CHECK(results[1].code() == StatusCode::invalid_argument);
  group->reset();
  JRT_REQUIRE_RANKS_OK(
      on_group(*group, [](ThreadCommunicator& communicator) { return prefill_half(communicator, false, false); }));
}

TEST_CASE("layouts that cannot be are refused") {
  const auto message = [](const ContextLayout& layout, int rank) {
    ContextPlan<Config> plan;
    const Status status = ContextPlan<Config>::make(layout, rank, Cpu{}, plan);
    CHECK(status.code() == StatusCode::invalid_argument);
    return std::string(status.message());
  };
  const std::int64_t tokens[4] = {5, -1, 3, 4};
  const std::int64_t encoder[4] = {9, 0, 0, 0};
  const std::int64_t positions[2] = {-3, 0};
  ContextLayout layout;
  layout.ranks = 0;
  CHECK(message(layout, 0) == "context layout: 'ranks' is 0, but must be at least 1.");
  layout.ranks = 2;
  CHECK(message(layout, 2) == "context layout: rank is 2, but must be from 0 to 1 (ranks - 1).");
  CHECK(message(layout, 1) == "context layout: 'tokens' is null.");
  layout.sequences = 2;
  layout.tokens = tokens;
  CHECK(message(layout, 1) == "context layout: rank 0 has -1 tokens of sequence 1, but must have from 0 to 2^31 - 1.");
  const std::int64_t legal[4] = {5, 1, 3, 4};
  layout.tokens = legal;
  layout.encoder_tokens = encoder;
  CHECK(message(layout, 1) == "context layout: sequence 0 has 9 encoder tokens, but must have from 0 to 8 (its tokens).");
  layout.encoder_tokens = nullptr;
  layout.first_positions = positions;
  CHECK(message(layout, 1) ==
        "context layout: 'first_positions[0]' is -3, but must be from 0 to 2147483639 (2^31 - 1 less the sequence's "
        "tokens).");
}

TEST_CASE("tokens are divided evenly, in multiples, with the remainder last") {
  std::int64_t pieces[4];
  divide_tokens(1000, 4, 100, pieces);
  CHECK(std::vector<std::int64_t>(pieces, pieces + 4) == std::vector<std::int64_t>{200, 300, 200, 300});
  divide_tokens(130, 4, 100, pieces);
  CHECK(std::vector<std::int64_t>(pieces, pieces + 4) == std::vector<std::int64_t>{0, 100, 0, 30});
  const std::int32_t offsets[3] = {0, 7, 20};
  const std::int64_t ends[2] = {10, 20};
  divide_packed(offsets, 2, ends, 2, pieces);
  CHECK(std::vector<std::int64_t>(pieces, pieces + 4) == std::vector<std::int64_t>{7, 3, 0, 10});
}

}  // namespace
}  // namespace jrt::test
