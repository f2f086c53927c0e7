// SPDX-License-Identifier: Apache-2.0
#include <jrt/team.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "support/backend.hpp"
#include "support/configs.hpp"
#include "support/linear_problem.hpp"

namespace jrt::test {
namespace {

static_assert(Executor<Team>);

/// Runs `body(thread)` in threads 0 … count − 1.
template <class Body>
void in_threads(int count, const Body& body) {
  std::vector<std::thread> threads;
  for (int thread = 1; thread < count; ++thread) {
    threads.emplace_back(body, thread);
  }
  body(0);
  for (std::thread& thread : threads) {
    thread.join();
  }
}

TEST_CASE("a team runs every task once, in valid workers, none of which works twice at a time") {
  Team team;
  for (const int count : {1, 4, 2, 3}) {  // one object, whatever the number of threads
    constexpr int calls = 30;
    constexpr std::int64_t tasks_of[] = {0, 1, 3, 200};
    std::vector<std::atomic<int>> runs(200);
    std::vector<std::atomic<int>> busy(static_cast<std::size_t>(count));
    std::atomic<int> returned = 0;
    std::atomic<bool> sound = true;
    in_threads(count, [&](int thread) {
      for (int call = 0; call < calls; ++call) {  // threads go from one call to the next without waiting for the others
        const Status status = team.enter(thread, count, [&]() -> Status {
          sound = sound && team.concurrency() == count;
          for (const std::int64_t tasks : tasks_of) {
            team.run(tasks, [&](std::int64_t task, int worker) {
              sound = sound && worker >= 0 && worker < count && busy[static_cast<std::size_t>(worker)]++ == 0;
              ++runs[static_cast<std::size_t>(task)];
              --busy[static_cast<std::size_t>(worker)];
            });
          }
          return {};
        });
        sound = sound && status.ok();
      }
      ++returned;
    });
    CHECK(sound);
    CHECK(returned == count);
    for (std::size_t task = 0; task < runs.size(); ++task) {
      REQUIRE(runs[task] == calls * (task < 1 ? 3 : task < 3 ? 2 : 1));
    }
  }
}

TEST_CASE("every thread gets the status of the call, and sees what it has written") {
  Team team;
  int written = 0;
  std::atomic<int> right = 0;
  in_threads(3, [&](int thread) {
    for (int call = 1; call <= 20; ++call) {
      const Status failed = team.enter(thread, 3, [&] {
        written = call;
        return call % 2 == 0 ? Status() : Status::error(StatusCode::invalid_argument, "call %d", call);
      });
      right += failed.ok() == (call % 2 == 0) && written == call &&
               (failed.ok() || failed.message() == "call " + std::to_string(call));
      // No thread may write again before all have looked.
      (void)team.enter(thread, 3, [] { return Status(); });
    }
  });
  CHECK(right == 60);
}

TEST_CASE("an exception in thread 0 releases the others") {
  Team team;
  std::atomic<int> released = 0;
  in_threads(3, [&](int thread) {
    try {
      const Status status = team.enter(thread, 3, []() -> Status { throw 1; });
      released += !status.ok() && thread != 0;
    } catch (int) {
      released += thread == 0;
    }
  });
  CHECK(released == 3);
  CHECK(team.enter(0, 1, [] { return Status(); }).ok());
}

TEST_CASE("a thread that is not of the team is refused, and waits for nobody") {
  Team team;
  const auto never = []() -> Status {
    REQUIRE(false);
    return {};
  };
  CHECK(team.enter(2, 2, never).message() ==
        "team: argument 'thread' is 2, but must be from 0 to 1 (the team's last thread).");
  CHECK(team.enter(-1, 2, never).code() == StatusCode::invalid_argument);
  CHECK(team.enter(0, 0, never).code() == StatusCode::invalid_argument);
}

TEST_CASE("outside of a call a team is the calling thread, and sizes workspaces for the threads to come") {
  CHECK(Team(0).concurrency() == 1);
  Team team(5);
  CHECK(team.concurrency() == 5);
  int last = -1;
  team.run(4, [&](std::int64_t task, int worker) { last = worker == 0 ? static_cast<int>(task) : -1; });
  CHECK(last == 3);
}

TEST_CASE("operations have the same result with any number of threads") {
  using Config = SplitByLength<Prefix<float>, 16>;
  Problem<Config> problem({.batch = 2, .tokens = 60, .prefix = 30});
  const Tensor<float> expected = run_prefill<Simple>(problem).output;
  Team team;
  for (const int count : {1, 2, 5}) {
    Tensor<float> output = zero_tensor<float>(problem.output_shape());
    PrefillArgs<Config> args{.query = view_of(problem.query), .key = view_of(problem.key), .value = view_of(problem.value)};
    args.key_encoder = view_of(problem.key_encoder);
    args.value_encoder = view_of(problem.value_encoder);
    args.output = view_of(output);
    Team sized(count);
    std::vector<std::byte> memory(prefill_workspace_bytes(args, Cpu{sized}));
    std::atomic<int> good = 0;
    std::atomic<int> refused = 0;
    in_threads(count, [&](int thread) {
      const Workspace workspace{memory.data(), memory.size()};
      good += team.enter(thread, count, [&] { return prefill(args, workspace, Cpu{team}); }).ok();
      refused +=
          team.enter(thread, count, [&] { return prefill(args, {}, Cpu{team}); }).code() == StatusCode::invalid_argument;
    });
    CHECK(good == count);
    CHECK(refused == count);
    CHECK(output == expected);
  }
}

}  // namespace
}  // namespace jrt::test
