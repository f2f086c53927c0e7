// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <jrt/distributed/cuda.cuh>
#include <jrt/distributed/nccl.cuh>
#include <span>
#include <vector>

/// Memory, tensors and time of one rank of context_bench.
namespace jrt::bench {

using E = BFloat16;
inline constexpr int rounds = 11;
inline constexpr int calls = 5;
inline bool node_priorities = true;

inline void require(cudaError_t error) {
  if (error != cudaSuccess) {
    std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
    std::exit(1);
  }
}
inline void require(ncclResult_t error) {
  if (error != ncclSuccess) {
    std::fprintf(stderr, "NCCL: %s\n", ncclGetErrorString(error));
    std::exit(1);
  }
}
inline void require(const Status& status) {
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.c_str());
    std::exit(1);
  }
}

class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) { require(cudaMalloc(&data_, std::max<std::size_t>(bytes, 16))); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { cudaFree(data_); }
  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data_);
  }
  [[nodiscard]] Workspace workspace() const { return {data_, bytes_}; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

/// Workspace of a rank's calls; if it is registered with NCCL, which all ranks do alike, NCCL may read and write it from
/// other GPUs without copies of its own.
class RankMemory {
 public:
  RankMemory(std::size_t bytes, ncclComm_t communicator) : bytes_(bytes), communicator_(communicator) {
    if (communicator == nullptr) {
      require(cudaMalloc(&data_, std::max<std::size_t>(bytes, 16)));
      return;
    }
    constexpr std::size_t of_all = std::size_t{1} << 29;  // the same on all ranks
    if (bytes > of_all) {
      std::fprintf(stderr, "a workspace has %zu bytes, but at most %zu are registered\n", bytes, of_all);
      std::exit(1);
    }
    require(ncclMemAlloc(&data_, of_all));
    require(ncclCommWindowRegister(communicator, data_, of_all, &window_, NCCL_WIN_COLL_SYMMETRIC));
  }
  RankMemory(const RankMemory&) = delete;
  RankMemory& operator=(const RankMemory&) = delete;
  ~RankMemory() {
    if (communicator_ == nullptr) {
      cudaFree(data_);
    } else {
      ncclCommWindowDeregister(communicator_, window_);
      ncclMemFree(data_);
    }
  }
  [[nodiscard]] Workspace workspace() const { return {data_, bytes_}; }
  [[nodiscard]] char* bytes() const { return static_cast<char*>(data_); }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
  ncclComm_t communicator_;
  ncclWindow_t window_ = nullptr;
};

static __global__ void fill(E* numbers, std::int64_t count, unsigned seed) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) {
    unsigned x = static_cast<unsigned>(i) * 2654435761U + seed * 40503U;
    x ^= x >> 15;
    x *= 2246822519U;
    x ^= x >> 13;
    numbers[i] = convert<E>(static_cast<float>(x & 0xffffU) / 32768.0F - 1.0F);
  }
}

/// Tokens x heads x dim of random numbers.
struct Tensor {
  Memory memory;
  TensorView<E> view;

  Tensor(std::int64_t tokens, std::int64_t of_heads, std::int64_t dim, unsigned seed, cudaStream_t stream)
      : memory(static_cast<std::size_t>(tokens * of_heads * dim) * sizeof(E)),
        view(view_bthd(memory.as<E>(), {.tokens = tokens, .heads = of_heads, .dim = dim})) {
    fill_with(seed, stream);
  }
  void fill_with(unsigned seed, cudaStream_t stream) const {
    const std::int64_t count = view.tokens * view.heads * view.dim;
    fill<<<static_cast<unsigned>(count / 256 + 1), 256, 0, stream>>>(memory.as<E>(), count, seed);
  }
};

/// How everything is timed.
struct Clock {
  std::barrier<>& all;
  NcclCommunicator* communicator;  // null on one GPU
  const Cuda& on;
  bool graph;
  int rank;
  bool registers = false;      // workspaces with NCCL
  SideStream* side = nullptr;  // of exchanges that only wait, and their blocks
  int waiting_blocks = 0;

  /// Milliseconds of a call, on the device of this thread.
  [[nodiscard]] double operator()(const std::function<Status()>& call) const {
    cudaStream_t const stream = on.stream();
    // Memory is allocated while no rank waits for another on its GPU: the driver may want both to be idle.
    all.arrive_and_wait();
    for (int i = 0; i < 3; ++i) {
      require(call());
    }
    require(cudaStreamSynchronize(stream));
    all.arrive_and_wait();
    const auto all_calls = [&] {
      for (int i = 0; i < calls; ++i) {
        require(call());
      }
    };
    cudaGraphExec_t replay = nullptr;
    if (graph) {
      cudaGraph_t captured = nullptr;
      require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      all_calls();
      require(cudaStreamEndCapture(stream, &captured));
      // The side stream's priority is that of its nodes, which a graph forgets unless told otherwise.
      require(cudaGraphInstantiate(&replay, captured, node_priorities ? cudaGraphInstantiateFlagUseNodePriority : 0));
      require(cudaGraphDestroy(captured));
    }
    cudaEvent_t begin = nullptr;
    cudaEvent_t end = nullptr;
    require(cudaEventCreate(&begin));
    require(cudaEventCreate(&end));
    const Memory small(64 * 16);
    std::vector<double> times;
    for (int round = 0; round < rounds + 2; ++round) {
      all.arrive_and_wait();
      if (communicator != nullptr) {
        require(communicator->all_gather(small.as<char>() + 16 * communicator->rank(), small.as<char>(), 16, on));
      }
      require(cudaEventRecord(begin, stream));
      if (graph) {
        require(cudaGraphLaunch(replay, stream));
      } else {
        all_calls();
      }
      require(cudaEventRecord(end, stream));
      require(cudaStreamSynchronize(stream));
      float milliseconds = 0;
      require(cudaEventElapsedTime(&milliseconds, begin, end));
      if (round >= 2) {
        times.push_back(milliseconds / calls);
      }
    }
    all.arrive_and_wait();
    if (replay != nullptr) {
      require(cudaGraphExecDestroy(replay));
    }
    require(cudaEventDestroy(begin));
    require(cudaEventDestroy(end));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
};

}  // namespace jrt::bench
