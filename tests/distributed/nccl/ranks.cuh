// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>
#include <doctest/doctest.h>
#include <nccl.h>

#include <barrier>
#include <chrono>
#include <cstdint>
#include <functional>
#include <jrt/distributed/cuda.cuh>
#include <jrt/distributed/nccl.cuh>
#include <span>
#include <thread>
#include <vector>

#include "support/device_copy.cuh"
#include "support/linear_problem.hpp"
#include "support/tensor.hpp"

/// Ranks that are threads with a GPU each.
namespace jrt::test {

/// One rank that has the whole.
struct Alone {
  static int rank() { return 0; }
  static int size() { return 1; }
  static Status all_gather(const void*, void*, std::size_t, const Cuda&) { return {}; }
  static Status exchange(std::span<const OutgoingBytes>, std::span<const IncomingBytes>, const Cuda&) { return {}; }
  static void abort() {}
};

inline int devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

constexpr std::int64_t heads = 2;

/// Rows [first, first + count) of host values on the device.
template <class T>
DeviceCopy<T> rows(const std::vector<T>& all, std::int64_t dim, std::int64_t first, std::int64_t count) {
  const auto* const begin = all.data() + first * heads * dim;
  return DeviceCopy<T>(std::vector<T>(begin, begin + count * heads * dim));
}
template <class T>
auto view(T* data, std::int64_t tokens, std::int64_t dim) {
  return view_bthd(data, {.tokens = tokens, .heads = heads, .dim = dim});
}
template <class T>
std::vector<float> as_floats(const std::vector<T>& values) {
  std::vector<float> result;
  for (const T x : values) {
    result.push_back(convert<float>(x));
  }
  return result;
}

/// Outputs of a rank's tokens and, of linear attention, the gradients of keys.
struct RankResults {
  std::vector<float> output;
  std::vector<float> key_gradient;
};

/// How a rank's calls run; `all_are_here()` returns when every rank has called it: memory comes and goes while no rank
/// waits for another on its GPU, since the driver may want both to be idle.
struct Way {
  bool captured = false;
  std::function<void()> all_are_here = [] {};
};

/// Enqueues, or captures and replays twice.
template <class C, class Call>
void enqueue(C& communicator, const Call& call, const Cuda& on, const Way& way) {
  way.all_are_here();
  JRT_REQUIRE_OK(call());
  if constexpr (requires { communicator.await_ranks(std::chrono::seconds(60), on); }) {
    JRT_REQUIRE_OK(communicator.await_ranks(std::chrono::seconds(60), on));
  }
  REQUIRE(cudaStreamSynchronize(on.stream()) == cudaSuccess);
  way.all_are_here();
  if (!way.captured) {
    return;
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  REQUIRE(cudaStreamBeginCapture(on.stream(), cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  JRT_REQUIRE_OK(call());
  REQUIRE(cudaStreamEndCapture(on.stream(), &graph) == cudaSuccess);
  REQUIRE(cudaGraphInstantiate(&replay, graph, 0) == cudaSuccess);
  way.all_are_here();
  for (int i = 0; i < 2; ++i) {
    REQUIRE(cudaGraphLaunch(replay, on.stream()) == cudaSuccess);
  }
  REQUIRE(cudaStreamSynchronize(on.stream()) == cudaSuccess);
  way.all_are_here();
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
}

/// `run(communicator, on, way)` in a thread for each rank, with its GPU.
template <class Run>
void on_gpus(int ranks, bool beside, bool captured, const Run& run) {
  std::vector<ncclComm_t> communicators(static_cast<std::size_t>(ranks));
  REQUIRE(ncclCommInitAll(communicators.data(), ranks, nullptr) == ncclSuccess);
  std::barrier<> all(ranks);
  const Way way{captured, [&] { all.arrive_and_wait(); }};
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      cudaSetDevice(rank);
      cudaStream_t stream = nullptr;
      cudaStream_t other = nullptr;
      cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
      {
        SideStream side(other);
        NcclCommunicator communicator(communicators[static_cast<std::size_t>(rank)], beside ? &side : nullptr);
        run(communicator, Cuda{stream}, way);
      }
      cudaStreamDestroy(other);
      cudaStreamDestroy(stream);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (ncclComm_t communicator : communicators) {
    ncclCommDestroy(communicator);
  }
}

/// RankResults of all ranks, one after the other; `run(communicator, on, way)` gives a rank's, one for each operation.
template <class Run>
std::vector<RankResults> run_group(int ranks, bool beside, bool captured, const Run& run) {
  std::vector<std::vector<RankResults>> of_ranks(static_cast<std::size_t>(ranks));
  on_gpus(ranks, beside, captured, [&](NcclCommunicator& communicator, const Cuda& on, const Way& way) {
    of_ranks[static_cast<std::size_t>(communicator.rank())] = run(communicator, on, way);
  });
  std::vector<RankResults> joined = of_ranks[0];
  for (int rank = 1; rank < ranks; ++rank) {
    for (std::size_t i = 0; i < joined.size(); ++i) {
      const RankResults& part = of_ranks[static_cast<std::size_t>(rank)][i];
      joined[i].output.insert(joined[i].output.end(), part.output.begin(), part.output.end());
      joined[i].key_gradient.insert(joined[i].key_gradient.end(), part.key_gradient.begin(), part.key_gradient.end());
    }
  }
  return joined;
}

}  // namespace jrt::test
