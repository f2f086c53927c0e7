// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <jrt/distributed/context_layout.hpp>
#include <jrt/distributed/thread_communicator.hpp>
#include <jrt/workspace.hpp>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "support/linear_problem.hpp"
#include "support/tensor.hpp"

/// Packed tensors divided over thread ranks.
namespace jrt::test {

/// Pieces of packed sequences, with their arrays: `tokens[rank][sequence]`.
struct Pieces {
  int ranks;
  std::vector<std::int64_t> tokens;
  std::vector<std::int64_t> encoder_tokens{};
  std::vector<std::uint8_t> has_initial_state{};
  std::vector<std::int64_t> first_positions{};

  [[nodiscard]] std::int64_t sequences() const { return static_cast<std::int64_t>(tokens.size()) / ranks; }
  [[nodiscard]] ContextLayout layout() const {
    ContextLayout layout;
    layout.ranks = ranks;
    layout.sequences = sequences();
    layout.tokens = tokens.data();
    layout.encoder_tokens = encoder_tokens.empty() ? nullptr : encoder_tokens.data();
    layout.has_initial_state = has_initial_state.empty() ? nullptr : has_initial_state.data();
    layout.first_positions = first_positions.empty() ? nullptr : first_positions.data();
    return layout;
  }
  [[nodiscard]] bool any_tokens(int rank, std::int64_t sequence) const { return layout().piece(rank, sequence) > 0; }

  /// Offsets of whole sequences.
  [[nodiscard]] std::vector<std::int32_t> offsets(bool encoder = false) const {
    std::vector<std::int32_t> offsets{0};
    for (std::int64_t g = 0; g < sequences(); ++g) {
      const std::int64_t count = encoder ? layout().first_encoder_token(ranks, g) : layout().first_token(ranks, g);
      offsets.push_back(offsets.back() + static_cast<std::int32_t>(count));
    }
    return offsets;
  }

  /// `function(whole token, token of the rank)` for every token of a rank.
  template <class Function>
  void for_tokens(int rank, bool encoder, const Function& function) const {
    const auto whole = offsets(encoder);
    std::int64_t local = 0;
    for (std::int64_t g = 0; g < sequences(); ++g) {
      const std::int64_t first = encoder ? layout().first_encoder_token(rank, g) : layout().first_token(rank, g);
      const std::int64_t count = encoder ? layout().encoder_piece(rank, g) : layout().piece(rank, g);
      for (std::int64_t t = 0; t < count; ++t) {
        function(whole[static_cast<std::size_t>(g)] + first + t, local++);
      }
    }
  }
  [[nodiscard]] std::int64_t local_tokens(int rank, bool encoder = false) const {
    std::int64_t count = 0;
    for_tokens(rank, encoder, [&](std::int64_t, std::int64_t) { ++count; });
    return count;
  }

  /// A rank's part of a packed tensor, and back.
  template <class E>
  [[nodiscard]] Tensor<E> of_rank(const Tensor<E>& whole, int rank, bool encoder = false) const {
    Tensor<E> part = zero_tensor<E>({1, local_tokens(rank, encoder), whole.shape.heads, whole.shape.dim});
    const std::int64_t row = whole.shape.heads * whole.shape.dim;
    for_tokens(rank, encoder, [&](std::int64_t from, std::int64_t to) {
      std::copy_n(whole.values.data() + from * row, row, part.values.data() + to * row);
    });
    return part;
  }
  template <class E>
  void put(const Tensor<E>& part, int rank, Tensor<E>& whole, bool encoder = false) const {
    const std::int64_t row = whole.shape.heads * whole.shape.dim;
    for_tokens(rank, encoder, [&](std::int64_t to, std::int64_t from) {
      std::copy_n(part.values.data() + from * row, row, whole.values.data() + to * row);
    });
  }
};

/// Does what may run beside an exchange before it, where `ThreadCommunicator` does it after: neither may need the other.
class WorkFirst : public ThreadCommunicator {
 public:
  using ThreadCommunicator::ThreadCommunicator;

  template <class Execution, class Transfers, class Work>
  Status overlap(const Execution& on, const Transfers& transfers, const Work& work) {
    const Status status = work(on);
    return status.ok() ? transfers(on) : status;
  }
};

/// Says that it has four workers: pieces are divided as for a larger device. Runs tasks one after the other.
struct FourWorkers {
  static constexpr int concurrency() { return 4; }
  template <class Function>
  void run(std::int64_t tasks, const Function& function) const {
    for (std::int64_t task = 0; task < tasks; ++task) {
      function(task, static_cast<int>(task % 4));
    }
  }
};

/// Runs `rank_function(communicator)` in a thread for each rank and returns their results.
template <class C = ThreadCommunicator, class Function>
std::vector<Status> run_ranks(int ranks, const Function& rank_function, int time_limit_ms = 20000) {
  std::unique_ptr<ThreadGroup> group;
  JRT_REQUIRE_OK(ThreadGroup::make(ranks, std::chrono::milliseconds(time_limit_ms), group));
  std::vector<Status> results(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      C communicator(*group, rank);
      Status status = rank_function(communicator);
      if (!status.ok()) {
        communicator.abort();
      }
      results[static_cast<std::size_t>(rank)] = status;
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return results;
}

#define JRT_REQUIRE_RANKS_OK(results)           \
  for (const ::jrt::Status& result : results) { \
    JRT_REQUIRE_OK(result);                     \
  }

/// Of which rank 1 fails in one of its exchanges and does not take part.
class Failing : public ThreadCommunicator {
 public:
  using ThreadCommunicator::ThreadCommunicator;
  inline static std::atomic<int> exchanges = 0;  ///< of rank 1
  inline static std::atomic<int> fails_in = -1;  ///< the number of one of them

  template <class Execution>
  Status all_gather(const void* send, void* receive, std::size_t bytes, const Execution& on) {
    return fails() ? failure() : ThreadCommunicator::all_gather(send, receive, bytes, on);
  }
  template <class Execution>
  Status exchange(std::span<const OutgoingBytes> outgoing, std::span<const IncomingBytes> incoming, const Execution& on) {
    return fails() ? failure() : ThreadCommunicator::exchange(outgoing, incoming, on);
  }

 private:
  [[nodiscard]] bool fails() const { return rank() == 1 && exchanges++ == fails_in; }
  static Status failure() { return Status::error(StatusCode::device_error, "rank 1 fails."); }
};

/// `run()` has the results of two ranks by `Failing`: whichever exchange fails, both get an error, and nobody waits.
template <class Run>
void check_failures(const Run& run) {
  Failing::fails_in = -1;
  Failing::exchanges = 0;
  JRT_REQUIRE_RANKS_OK(run());
  const int count = Failing::exchanges;
  CHECK(count > 0);
  for (int i = 0; i < count; ++i) {
    CAPTURE(i);
    Failing::fails_in = i;
    Failing::exchanges = 0;
    const auto begin = std::chrono::steady_clock::now();
    const std::vector<Status> results = run();
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(15));
    CHECK(results[1].message() == "rank 1 fails.");
    CHECK(results[0].message().find("has called abort") != std::string_view::npos);
  }
}

/// A workspace of exactly the size asked for.
class OwnWorkspace {
 public:
  explicit OwnWorkspace(std::size_t bytes) : memory_(bytes, std::byte{0x7f}), bytes_(bytes) {}
  Workspace view() { return {memory_.data(), bytes_}; }

 private:
  std::vector<std::byte> memory_;
  std::size_t bytes_;
};

}  // namespace jrt::test
