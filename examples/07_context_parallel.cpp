// SPDX-License-Identifier: Apache-2.0
// One sequence over several ranks: each has a piece of the tokens and of the encoder region, and one exchange of a few
// states gives it all that came before. Here ranks are threads; with GPUs it is jrt::Cuda and jrt::NcclCommunicator.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <jrt/distributed/cpu.hpp>
#include <random>
#include <thread>
#include <vector>

struct Operator : jrt::PrefixLinearAttention<float, 16, 64> {
  using Split = jrt::LengthSplit<960>;  // the same bits on any number of ranks
};
constexpr std::int64_t all_tokens = 7680, all_prefix = 3840, head_count = 2;

static void require(const jrt::Status& status) {
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.c_str());
    std::exit(1);
  }
}

static std::vector<float> random_numbers(std::int64_t rows, std::int64_t dim, unsigned seed) {
  std::vector<float> numbers(static_cast<std::size_t>(rows * head_count * dim));
  std::generate(
      numbers.begin(), numbers.end(),
      [generator = std::mt19937(seed), normal = std::normal_distribution<float>()]() mutable { return normal(generator); });
  return numbers;
}

int main() {
  auto query = random_numbers(all_tokens, 16, 1), key = random_numbers(all_tokens, 16, 2);
  auto value = random_numbers(all_tokens, 64, 3), key_encoder = random_numbers(all_prefix, 16, 4);
  auto value_encoder = random_numbers(all_prefix, 64, 5);
  std::vector<float> output(value.size()), of_one_rank;
  double one_ms = 0;
  std::printf("ranks  time      times faster  sent by each  same outputs\n");
  for (const int ranks : {1, 2, 4}) {
    std::int64_t pieces[4], encoder_pieces[4], sent[4];
    jrt::divide_at_segments<Operator>(all_tokens, ranks, jrt::Cpu{}, pieces);
    jrt::divide_at_segments<Operator>(all_prefix, ranks, jrt::Cpu{}, encoder_pieces);
    const jrt::ContextLayout layout{ranks, 1, pieces, encoder_pieces, nullptr, nullptr};
    std::unique_ptr<jrt::ThreadGroup> group;
    require(jrt::ThreadGroup::make(ranks, std::chrono::seconds(60), group));
    const auto run_rank = [&](int rank) {
      const auto rows = [&](std::vector<float>& all, std::int64_t first, std::int64_t count, std::int64_t dim) {
        return jrt::view_bthd(all.data(), {1, all_tokens, head_count, dim}).slice_tokens(first, count);
      };
      const auto of = [&](auto& all, int dim) { return rows(all, layout.first_token(rank, 0), pieces[rank], dim); };
      const std::int64_t first_encoder = layout.first_encoder_token(rank, 0);
      jrt::ContextPlan<Operator> plan;  // once for a layout, whatever the layers and steps
      require(jrt::ContextPlan<Operator>::make(layout, rank, jrt::Cpu{}, plan));
      jrt::ContextPrefillArgs<Operator> args;
      args.plan = &plan;
      args.local.query = of(query, 16), args.local.key = of(key, 16), args.local.value = of(value, 64);
      args.local.key_encoder = rows(key_encoder, first_encoder, encoder_pieces[rank], 16);
      args.local.value_encoder = rows(value_encoder, first_encoder, encoder_pieces[rank], 64);
      args.local.output = of(output, 64);
      std::vector<std::byte> memory(jrt::prefill_workspace_bytes(args, jrt::Cpu{}));
      jrt::ThreadCommunicator communicator(*group, rank);
      require(jrt::prefill(args, communicator, {memory.data(), memory.size()}, jrt::Cpu{}));
      sent[rank] = plan.exchanged_bytes(head_count);
    };
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::jthread> others;
    for (int rank = 1; rank < ranks; ++rank) {
      others.emplace_back(run_rank, rank);
    }
    run_rank(0);
    others.clear();  // waits for them
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
    of_one_rank = ranks == 1 ? output : of_one_rank;
    one_ms = ranks == 1 ? time.count() : one_ms;
    require(output == of_one_rank ? jrt::Status() : jrt::Status::error(jrt::StatusCode::corrupt_data, "outputs differ"));
    std::printf("%5d  %5.1f ms  %12.2f  %10lld B  yes\n", ranks, time.count(), one_ms / time.count(),
                static_cast<long long>(sent[0]));
  }
}
