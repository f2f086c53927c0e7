// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "jrt/execution/cuda.cuh"
#include "jrt/status.hpp"

namespace jrt {

/// A stream of the caller's beside those of calls, on the same device, with two events to order them. Made once and used
/// for one execution's stream at a time; it must outlive what was enqueued. What is enqueued on it can be captured with the
/// stream that it is forked from.
///
/// It should have a higher priority than that one (cudaStreamCreateWithPriority), or its kernels wait until the other's
/// last blocks have started. A captured graph keeps priorities only if it is made so:
/// cudaGraphInstantiateFlagUseNodePriority.
class SideStream {
 public:
  explicit SideStream(cudaStream_t stream, CudaKernels kernels = CudaKernels::automatic) : on_(stream, kernels) {
    keep_first(cudaEventCreateWithFlags(&forked_, cudaEventDisableTiming));
    keep_first(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming));
  }
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;
  ~SideStream() {
    if (forked_ != nullptr) {
      cudaEventDestroy(forked_);
    }
    if (done_ != nullptr) {
      cudaEventDestroy(done_);
    }
  }

  /// For work beside that of another stream.
  [[nodiscard]] const Cuda& execution() const { return on_; }

  /// What follows here comes after what has been enqueued on `on`.
  [[nodiscard]] Status fork(const Cuda& on) {
    keep_first(cudaEventRecord(forked_, on.stream()));
    keep_first(cudaStreamWaitEvent(on_.stream(), forked_, 0));
    return status();
  }
  /// What follows on `on` comes after what has been enqueued here.
  [[nodiscard]] Status join(const Cuda& on) {
    keep_first(cudaEventRecord(done_, on_.stream()));
    keep_first(cudaStreamWaitEvent(on.stream(), done_, 0));
    return status();
  }

  /// `transfers(execution())` here beside `work(on)`; what follows on `on` comes after both.
  template <class Transfers, class Work>
  [[nodiscard]] Status run_beside(const Cuda& on, const Transfers& transfers, const Work& work) {
    Status status = fork(on);
    if (status.ok()) {
      status = transfers(on_);
      const Status worked = status.ok() ? work(on) : Status();
      const Status joined = join(on);  // in any case: a capture must not end with a stream apart
      status = !status.ok() ? status : !worked.ok() ? worked : joined;
    }
    return status;
  }

 private:
  void keep_first(cudaError_t error) {
    if (error_ == cudaSuccess) {
      error_ = error;
    }
  }
  [[nodiscard]] Status status() const {
    return error_ == cudaSuccess ? Status()
                                 : Status::error(StatusCode::device_error, "side stream: %s.", cudaGetErrorString(error_));
  }

  Cuda on_;
  cudaEvent_t forked_ = nullptr;
  cudaEvent_t done_ = nullptr;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace jrt
