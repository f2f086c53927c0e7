// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <functional>
#include <jrt/distributed/cuda.cuh>
#include <jrt/distributed/nccl.cuh>
#include <optional>
#include <thread>
#include <type_traits>
#include <vector>

#include "cuda/distributed/context_clock.cuh"

/// The mixers of context_bench, and their times on the ranks of a group.
namespace jrt::bench {

using Linear = PrefixLinearAttention<E, 16, 64>;
using Window = SlidingWindowAttention<E, 64, 128>;
using Convolution = GatedConvolution<E, 3>;
using Hybrid = HybridAttention<Linear, WindowBeside<Linear, 128>>;
inline constexpr std::int64_t heads = 16;
inline constexpr std::int64_t channels = 1024;

/// A rank of a group of one, or of several that exchange nothing: what calls cost without the exchange.
struct NoExchange {
  int of_rank;
  int ranks;
  [[nodiscard]] int rank() const { return of_rank; }
  [[nodiscard]] int size() const { return ranks; }
  static Status all_gather(const void*, void*, std::size_t, const Cuda&) { return {}; }
  static Status exchange(std::span<const OutgoingBytes>, std::span<const IncomingBytes>, const Cuda&) { return {}; }
  static void abort() {}
};

static __global__ void wait_for(long long nanoseconds) {
  const auto now = [] {
    long long time = 0;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
    return time;
  };
  const long long begin = now();
  while (now() - begin < nanoseconds) {
  }
}

/// Exchanges that only take time and multiprocessors, on one GPU, in order or on a stream beside.
struct WaitingExchange : NoExchange {
  SideStream* side;  // may be null
  int blocks;
  double microseconds;

  Status all_gather(const void*, void*, std::size_t, const Cuda& on) const {
    wait_for<<<static_cast<unsigned>(blocks), 544, 80 << 10, on.stream()>>>(static_cast<long long>(microseconds * 1000));
    return {};
  }
  Status exchange(std::span<const OutgoingBytes>, std::span<const IncomingBytes>, const Cuda& on) const {
    return all_gather(nullptr, nullptr, 0, on);
  }
  template <class Transfers, class Work>
  Status overlap(const Cuda& on, const Transfers& transfers, const Work& work) const {
    return side == nullptr ? detail::one_after_the_other(on, transfers, work) : side->run_beside(on, transfers, work);
  }
};

/// What one rank measures of one mixer, in milliseconds.
struct Times {
  double call = 0;
  double in_order = 0;
  double local = 0;
  double exchange = 0;
  double sent = 0;  // bytes in a call
  double received = 0;
};

using Time = double Times::*;
inline constexpr Time all_times[] = {&Times::call,     &Times::in_order, &Times::local,
                                     &Times::exchange, &Times::sent,     &Times::received};

/// `meanwhile` is work of the caller's that the exchange does not need.
template <class Config, class Args>
Times time_mixer(const Args& local, const ContextLayout& layout, const Clock& time_of,
                 const std::function<Status()>& meanwhile = nullptr) {
  const Cuda& on = time_of.on;
  if (layout.ranks == 1) {
    Memory workspace(prefill_workspace_bytes(local, on));
    const double time = time_of([&] {
      const Status status = meanwhile ? meanwhile() : Status();
      return status.ok() ? prefill(local, workspace.workspace(), on) : status;
    });
    return {time, time, time, 0, 0, 0};
  }
  NoExchange nothing{time_of.rank, layout.ranks};
  ContextPlan<Config> plan;
  require(ContextPlan<Config>::make(layout, time_of.rank, on, plan));
  Memory indices(plan.index_bytes());
  require(plan.place(indices.template as<void>(), on));
  const ContextPrefillArgs<Config> args{local, &plan};
  const RankMemory workspace(prefill_workspace_bytes(args, on), time_of.registers ? time_of.communicator->get() : nullptr);
  Times times;
  const auto call = [&](auto& communicator) {
    return meanwhile ? prefill(args, meanwhile, communicator, workspace.workspace(), on)
                     : prefill(args, communicator, workspace.workspace(), on);
  };
  if (time_of.communicator == nullptr) {
    if (!time_of.graph) {
      for (int i = 0; i < 2; ++i) {
        require(call(nothing));
      }
      require(cudaStreamSynchronize(on.stream()));
      return times;
    }
    require(cudaFuncSetAttribute(wait_for, cudaFuncAttributeMaxDynamicSharedMemorySize, 80 << 10));
    const WaitingExchange in_order{{time_of.rank, layout.ranks}, nullptr, time_of.waiting_blocks, 10};
    const WaitingExchange beside{{time_of.rank, layout.ranks}, time_of.side, time_of.waiting_blocks, 10};
    times.local = time_of([&] { return call(nothing); });
    times.in_order = time_of([&] { return call(in_order); });
    times.call = time_of([&] { return call(beside); });
    return times;
  }
  NcclCommunicator& communicator = *time_of.communicator;
  NcclCommunicator in_order(communicator.get());
  times.local = time_of([&] { return call(nothing); });
  times.in_order = time_of([&] { return call(in_order); });
  times.call = time_of([&] { return call(communicator); });

  const int rank = communicator.rank();
  std::int64_t gathered = 0;
  std::int64_t halo = 0;
  if constexpr (std::is_same_v<Config, Hybrid>) {
    gathered = plan.exchanged_bytes(heads);
    halo = (Hybrid::Window::left_window + 1) * heads * (16 + 64) * static_cast<std::int64_t>(sizeof(E));
  } else if constexpr (std::is_same_v<Config, Linear>) {
    gathered = plan.exchanged_bytes(heads);
  } else {
    const std::int64_t row = std::is_same_v<Config, Window> ? 2 * heads * Window::head_dim : channels;
    halo = ContextPlan<Config>::halo_rows * row * static_cast<std::int64_t>(sizeof(E));
  }
  times.sent = static_cast<double>(gathered + (rank + 1 < layout.ranks ? halo : 0));
  times.received = static_cast<double>(gathered * (layout.ranks - 1) + (rank > 0 ? halo : 0));
  const RankMemory sums(static_cast<std::size_t>(gathered * layout.ranks),
                        time_of.registers ? communicator.get() : nullptr);
  const Memory rows(static_cast<std::size_t>(2 * halo));
  times.exchange = time_of([&] {
    Status status;
    if (halo > 0) {
      const auto bytes = static_cast<std::size_t>(halo);
      const OutgoingBytes outgoing{rank + 1, rows.as<char>(), bytes};
      const IncomingBytes incoming{rank - 1, rows.as<char>() + halo, bytes};
      status = in_order.exchange({&outgoing, rank + 1 < layout.ranks ? 1U : 0U}, {&incoming, rank > 0 ? 1U : 0U}, on);
    }
    return status.ok() && gathered > 0
               ? in_order.all_gather(sums.bytes() + rank * gathered, sums.bytes(), static_cast<std::size_t>(gathered), on)
               : status;
  });
  return times;
}

struct Mixers {
  Times linear, linear_meanwhile, window, convolution, hybrid;
};

inline Mixers time_rank(std::int64_t tokens, int rank, int ranks, const Clock& clock) {
  const Cuda& on = clock.on;
  std::vector<std::int64_t> pieces(static_cast<std::size_t>(ranks));
  std::vector<std::int64_t> encoder(pieces);
  divide_tokens(tokens, ranks, 64, pieces.data());
  divide_tokens(tokens / 2, ranks, 64, encoder.data());
  const ContextLayout layout{ranks, 1, pieces.data(), encoder.data()};
  ContextLayout no_encoder = layout;
  no_encoder.encoder_tokens = nullptr;
  const std::int64_t count = layout.piece(rank, 0);
  Mixers times;
  {
    const Tensor query(count, heads, 16, 1, on.stream());
    const Tensor key(count, heads, 16, 2, on.stream());
    const Tensor value(count, heads, 64, 3, on.stream());
    const Tensor key_encoder(layout.encoder_piece(rank, 0), heads, 16, 4, on.stream());
    const Tensor value_encoder(layout.encoder_piece(rank, 0), heads, 64, 5, on.stream());
    const Tensor output(count, heads, 64, 6, on.stream());
    PrefillArgs<Linear> args;
    args.query = query.view;
    args.key = key.view;
    args.value = value.view;
    args.key_encoder = key_encoder.view;
    args.value_encoder = value_encoder.view;
    args.output = output.view;
    times.linear = time_mixer<Linear>(args, layout, clock);
    times.linear_meanwhile = time_mixer<Linear>(args, layout, clock, [&] {
      query.fill_with(1, on.stream());
      return Status();
    });
    PrefillArgs<Hybrid> both;
    both.query = query.view;
    both.key = key.view;
    both.value = value.view;
    both.key_encoder = key_encoder.view;
    both.value_encoder = value_encoder.view;
    both.output = output.view;
    times.hybrid = time_mixer<Hybrid>(both, layout, clock);
  }
  {
    const Tensor query(count, heads, 64, 1, on.stream());
    const Tensor key(count, heads, 64, 2, on.stream());
    const Tensor value(count, heads, 64, 3, on.stream());
    const Tensor output(count, heads, 64, 6, on.stream());
    PrefillArgs<Window> args;
    args.query = query.view;
    args.key = key.view;
    args.value = value.view;
    args.output = output.view;
    times.window = time_mixer<Window>(args, no_encoder, clock);
  }
  {
    const Tensor input(count, 1, channels, 1, on.stream());
    const Tensor gate(count, 1, channels, 2, on.stream());
    const Tensor output(count, 1, channels, 3, on.stream());
    const Tensor weight(1, 1, channels * 3, 4, on.stream());
    PrefillArgs<Convolution> args;
    args.input = input.view;
    args.gate = gate.view;
    args.output = output.view;
    args.weight = weight.view.data;
    times.convolution = time_mixer<Convolution>(args, no_encoder, clock);
  }
  return times;
}

/// A rank's stream, and the one beside it for exchanges, whose kernels come first.
struct RankStreams {
  RankStreams() {
    int lowest = 0;
    int highest = 0;
    require(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    require(cudaStreamCreateWithFlags(&main, cudaStreamNonBlocking));
    require(cudaStreamCreateWithPriority(&beside, cudaStreamNonBlocking, highest));
  }
  RankStreams(const RankStreams&) = delete;
  RankStreams& operator=(const RankStreams&) = delete;
  ~RankStreams() {
    cudaStreamDestroy(beside);
    cudaStreamDestroy(main);
  }

  cudaStream_t main = nullptr;
  cudaStream_t beside = nullptr;
};

/// The slowest rank's times of each mixer.
inline Mixers time_group(std::int64_t tokens, int gpus, bool graph, bool registers) {
  std::vector<Mixers> ranks(static_cast<std::size_t>(gpus));
  std::barrier<> all(gpus);
  std::vector<ncclComm_t> communicators(static_cast<std::size_t>(gpus));
  if (gpus > 1) {
    require(ncclCommInitAll(communicators.data(), gpus, nullptr));
  }
  std::vector<std::thread> threads;
  for (int rank = 0; rank < gpus; ++rank) {
    threads.emplace_back([&, rank] {
      require(cudaSetDevice(rank));
      const RankStreams streams;
      const Cuda on{streams.main};
      SideStream side(streams.beside);
      std::optional<NcclCommunicator> communicator;
      if (gpus > 1) {
        communicator.emplace(communicators[static_cast<std::size_t>(rank)], &side);
      }
      const Clock clock{all, communicator ? &*communicator : nullptr, on, graph, rank, registers && gpus > 1};
      ranks[static_cast<std::size_t>(rank)] = time_rank(tokens, rank, gpus, clock);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (ncclComm_t communicator : communicators) {
    if (gpus > 1) {
      ncclCommDestroy(communicator);
    }
  }
  Mixers slowest = ranks[0];
  for (const Mixers& rank : ranks) {
    for (const auto mixer :
         {&Mixers::linear, &Mixers::linear_meanwhile, &Mixers::window, &Mixers::convolution, &Mixers::hybrid}) {
      for (const auto time : all_times) {
        (slowest.*mixer).*time = std::max((slowest.*mixer).*time, (rank.*mixer).*time);
      }
    }
  }
  return slowest;
}

/// Two calls of each mixer on rank `rank` of `ranks`, without the exchanges, on one GPU: for a profiler. With `waiting`
/// blocks, times of the calls with exchanges that only wait for 10 us, in place of NCCL's.
inline Mixers run_alone(std::int64_t tokens, int rank, int ranks, int waiting) {
  std::barrier<> one(1);
  const RankStreams streams;
  const Cuda on(streams.main);
  SideStream side(streams.beside);
  return time_rank(tokens, rank, ranks, Clock{one, nullptr, on, waiting > 0, rank, false, &side, waiting});
}

}  // namespace jrt::bench
