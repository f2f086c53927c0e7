// SPDX-License-Identifier: Apache-2.0
// One sequence over several ranks: each has a contiguous piece of the tokens and of the encoder region, and one exchange of
// a few states gives it all that came before. Here ranks are threads; with GPUs they are processes or threads that have one
// each, jrt::Cuda takes the place of jrt::Cpu, and jrt::NcclCommunicator that of jrt::ThreadCommunicator.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <jrt/distributed/cpu.hpp>
#include <memory>
#include <random>
#include <thread>
#include <vector>

struct Operator : jrt::PrefixLinearAttention<float, 16, 64> {
  using Split = jrt::LengthSplit<960>;  // the same bits on any number of ranks
};
constexpr std::int64_t tokens = 7680, prefix = 3840, heads = 2;

static void require(const jrt::Status& status) {
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.c_str());
    std::exit(1);
  }
}

static std::vector<float> random_numbers(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) {
    number = normal(generator);
  }
  return numbers;
}

int main() {
  const auto query = random_numbers(tokens * heads * 16, 1), key = random_numbers(tokens * heads * 16, 2);
  const auto value = random_numbers(tokens * heads * 64, 3);
  const auto key_encoder = random_numbers(prefix * heads * 16, 4), value_encoder = random_numbers(prefix * heads * 64, 5);
  std::vector<float> of_one_rank, output(static_cast<std::size_t>(tokens * heads * 64));
  std::printf("%lld tokens, %lld of them read twice, %lld heads\nranks  time      bytes each rank sends  same outputs\n",
              static_cast<long long>(tokens), static_cast<long long>(prefix), static_cast<long long>(heads));
  for (const int ranks : {1, 2, 4}) {
    std::vector<std::int64_t> pieces(static_cast<std::size_t>(ranks)), encoder_pieces(pieces);
    jrt::divide_at_segments<Operator>(tokens, ranks, jrt::Cpu{}, pieces.data());
    jrt::divide_at_segments<Operator>(prefix, ranks, jrt::Cpu{}, encoder_pieces.data());
    const jrt::ContextLayout layout{ranks, 1, pieces.data(), encoder_pieces.data()};
    std::unique_ptr<jrt::ThreadGroup> group;
    require(jrt::ThreadGroup::make(ranks, std::chrono::seconds(60), group));
    std::vector<std::int64_t> sent(pieces.size());
    const auto run_rank = [&](int rank) {
      const std::int64_t first = layout.first_token(rank, 0), first_encoder = layout.first_encoder_token(rank, 0);
      const auto of = [&](auto& all, std::int64_t from, std::int64_t count, std::int64_t dim) {
        return jrt::view_bthd(all.data() + from * heads * dim, {.tokens = count, .heads = heads, .dim = dim});
      };
      const std::int64_t count = layout.piece(rank, 0), encoder_count = layout.encoder_piece(rank, 0);
      jrt::ContextPlan<Operator> plan;  // once for a layout, whatever the layers and steps
      require(jrt::ContextPlan<Operator>::make(layout, rank, jrt::Cpu{}, plan));
      jrt::ContextPrefillArgs<Operator> args{.local = {.query = of(query, first, count, 16)}, .plan = &plan};
      args.local.key = of(key, first, count, 16), args.local.value = of(value, first, count, 64);
      args.local.key_encoder = of(key_encoder, first_encoder, encoder_count, 16);
      args.local.value_encoder = of(value_encoder, first_encoder, encoder_count, 64);
      args.local.output = of(output, first, count, 64);
      std::vector<std::byte> memory(jrt::prefill_workspace_bytes(args, jrt::Cpu{}));
      jrt::ThreadCommunicator communicator(*group, rank);
      const jrt::Status status = jrt::prefill(args, communicator, {memory.data(), memory.size()}, jrt::Cpu{});
      if (!status.ok()) {
        communicator.abort();  // or the other ranks would wait
      }
      require(status);
      sent[static_cast<std::size_t>(rank)] = ranks == 1 ? 0 : plan.exchanged_bytes(heads);
    };
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; ++rank) {
      threads.emplace_back(run_rank, rank);
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
    of_one_rank = ranks == 1 ? output : of_one_rank;
    std::printf("%5d  %5.1f ms  %21lld  %s\n", ranks, time.count(), static_cast<long long>(sent[0]),
                output == of_one_rank ? "yes, to the bit" : "no");
    if (output != of_one_rank) {
      return 1;
    }
  }
}
