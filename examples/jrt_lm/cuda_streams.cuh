// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <jrt/execution/cuda.cuh>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

/// What CUDA's runtime has by handles: streams, events, graphs, and host memory for transfers.
namespace jrt_lm {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // told here, not by the next launch
    throw std::runtime_error(std::string("CUDA, ") + what + ": " + cudaGetErrorString(error));
  }
}

template <auto destroy>
struct Destroy {
  template <class Handle>
  void operator()(Handle handle) const {
    destroy(handle);
  }
};
using CudaStream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Destroy<cudaStreamDestroy>>;
using CudaEvent = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, Destroy<cudaEventDestroy>>;
using CudaGraph = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, Destroy<cudaGraphExecDestroy>>;

inline CudaStream make_stream() {
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  return CudaStream(stream);
}
inline CudaEvent make_event() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  return CudaEvent(event);
}

/// What `function` enqueues in a stream, without running it.
template <class Function>
CudaGraph captured(cudaStream_t stream, const Function& function) {
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  cudaGraph_t nodes = nullptr;
  try {
    function();
  } catch (...) {
    cudaStreamEndCapture(stream, &nodes);
    if (nodes != nullptr) {
      cudaGraphDestroy(nodes);
    }
    static_cast<void>(cudaGetLastError());
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream, &nodes), "end of capture");
  cudaGraphExec_t graph = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&graph, nodes, 0);
  cudaGraphDestroy(nodes);
  check_cuda(error, "graph");
  return CudaGraph(graph);
}

/// Host memory for transfers that the host does not wait for.
template <class T>
class TransferArray {
 public:
  TransferArray() = default;
  explicit TransferArray(std::int64_t count) {
    void* memory = nullptr;
    check_cuda(cudaMallocHost(&memory, static_cast<std::size_t>(count) * sizeof(T)), "memory for transfers");
    data_.reset(static_cast<T*>(memory));
  }
  [[nodiscard]] T* data() const { return data_.get(); }

 private:
  std::unique_ptr<T, Destroy<cudaFreeHost>> data_;
};

/// Streams beside a main one, made when they are first used.
class SideStreams {
 public:
  /// `function(i, execution)` for calls that do not need one another: they are short, and several streams start them
  /// sooner. All of them are between what is before and what comes after in the main stream.
  template <class Function>
  void run(cudaStream_t main, std::int64_t count, const Function& function) {
    if (sides_.empty()) {
      CudaEvent fork = make_event();
      std::vector<Side> sides;
      for (int i = 0; i < streams; ++i) {
        CudaStream stream = make_stream();
        const jrt::Cuda execution(stream.get());
        sides.push_back({std::move(stream), execution, make_event()});
      }
      fork_ = std::move(fork);
      sides_ = std::move(sides);
    }
    check_cuda(cudaEventRecord(fork_.get(), main), "event");
    for (const Side& side : sides_) {
      check_cuda(cudaStreamWaitEvent(side.stream.get(), fork_.get(), 0), "streams beside one another");
    }
    for (std::int64_t i = 0; i < count; ++i) {
      function(i, sides_[static_cast<std::size_t>(i % streams)].execution);
    }
    for (const Side& side : sides_) {
      check_cuda(cudaEventRecord(side.done.get(), side.stream.get()), "event");
      check_cuda(cudaStreamWaitEvent(main, side.done.get(), 0), "streams beside one another");
    }
  }

 private:
  static constexpr int streams = 8;

  struct Side {
    CudaStream stream;
    jrt::Cuda execution;
    CudaEvent done;
  };
  std::vector<Side> sides_;
  CudaEvent fork_;
};

}  // namespace jrt_lm
