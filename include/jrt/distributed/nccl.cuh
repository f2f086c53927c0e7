// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <chrono>
#include <cstddef>
#include <span>
#include <thread>

#include "jrt/distributed/communicator.hpp"
#include "jrt/distributed/side_stream.cuh"
#include "jrt/execution/cuda.cuh"
#include "jrt/status.hpp"

namespace jrt {

/// A group of GPUs connected by NCCL: link `jrt::nccl`. The communicator is the caller's, made by ncclCommInitRank or
/// ncclCommInitAll for the device on which the calls run, blocking, and not used by other threads meanwhile.
///
/// Calls enqueue their transfers on the execution's stream and return; they can be captured in a CUDA graph. A rank that
/// does not make its call leaves the streams of the others waiting: `await_ranks` waits with a time limit, then aborts.
/// NCCL connects ranks in the first call that needs it, and the host waits in there, without a time limit: a program that
/// must not wait for ever makes one call of each kind when the group begins, or sets NCCL_RUNTIME_CONNECT=0 (NCCL connects
/// all ranks when communicators are made). Several ranks of one process need more care: docs/distributed.md.
///
/// With a `SideStream`, calls run their transfers on it, beside the work of the execution's stream that does not need them.
///
/// A workspace that is registered with NCCL (ncclMemAlloc, ncclCommWindowRegister with NCCL_WIN_COLL_SYMMETRIC) is gathered
/// without copies of NCCL's own.
///
/// The library needs no NVLink multicast; where a machine's driver does not allow it, set NCCL_NVLS_ENABLE=0.
class NcclCommunicator {
 public:
  explicit NcclCommunicator(ncclComm_t communicator, SideStream* side = nullptr)
      : communicator_(communicator), side_(side) {
    error_ = ncclCommUserRank(communicator, &rank_);
    if (error_ == ncclSuccess) {
      error_ = ncclCommCount(communicator, &size_);
    }
  }

  /// The caller's.
  [[nodiscard]] ncclComm_t get() const { return communicator_; }
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return size_; }

  Status all_gather(const void* send, void* receive, std::size_t bytes, const Cuda& on) {
    return error_ != ncclSuccess
               ? status("all_gather", error_)
               : status("all_gather", ncclAllGather(send, receive, bytes, ncclInt8, communicator_, on.stream()));
  }

  Status exchange(std::span<const OutgoingBytes> outgoing, std::span<const IncomingBytes> incoming, const Cuda& on) {
    ncclResult_t result = error_ != ncclSuccess ? error_ : ncclGroupStart();
    if (result != ncclSuccess) {
      return status("exchange", result);
    }
    for (const OutgoingBytes& bytes : outgoing) {
      keep_first(result, ncclSend(bytes.data, bytes.bytes, ncclInt8, bytes.to, communicator_, on.stream()));
    }
    for (const IncomingBytes& bytes : incoming) {
      keep_first(result, ncclRecv(bytes.data, bytes.bytes, ncclInt8, bytes.from, communicator_, on.stream()));
    }
    keep_first(result, ncclGroupEnd());
    return status("exchange", result);
  }

  /// Runs `transfers` on the side stream, if there is one, and `work` on that of `on`, which then waits for both.
  template <class Transfers, class Work>
  Status overlap(const Cuda& on, const Transfers& transfers, const Work& work) {
    return side_ == nullptr ? detail::one_after_the_other(on, transfers, work) : side_->run_beside(on, transfers, work);
  }

  /// Ends what is in flight on this rank's stream, by ncclCommAbort, which frees the communicator: the caller must not
  /// destroy it again, and later calls return an error. Other ranks have to do the same (`await_ranks`).
  void abort() {
    if (error_ == ncclSuccess) {
      static_cast<void>(ncclCommAbort(communicator_));
      error_ = ncclInvalidUsage;
    }
  }

  /// Waits until the stream's work is done. If that takes longer than the time limit, or NCCL reports that another rank has
  /// failed, aborts and returns `device_error`. The one function here that waits.
  Status await_ranks(std::chrono::milliseconds time_limit, const Cuda& on) {
    const auto end = std::chrono::steady_clock::now() + time_limit;
    for (;;) {
      const cudaError_t done = cudaStreamQuery(on.stream());
      if (done == cudaSuccess) {
        return {};
      }
      if (done != cudaErrorNotReady) {
        return Status::error(StatusCode::device_error, "await_ranks: %s.", cudaGetErrorString(done));
      }
      ncclResult_t failure = error_;
      if (error_ == ncclSuccess) {
        const ncclResult_t asked = ncclCommGetAsyncError(communicator_, &failure);
        keep_first(failure, asked);
      }
      if (failure != ncclSuccess) {
        abort();
        return status("await_ranks", failure);
      }
      if (std::chrono::steady_clock::now() >= end) {
        abort();
        return Status::error(StatusCode::device_error, "await_ranks: rank %d has waited %lld ms for the others.", rank_,
                             static_cast<long long>(time_limit.count()));
      }
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }

 private:
  static void keep_first(ncclResult_t& first, ncclResult_t next) {
    if (first == ncclSuccess) {
      first = next;
    }
  }
  static Status status(const char* operation, ncclResult_t result) {
    return result == ncclSuccess
               ? Status()
               : Status::error(StatusCode::device_error, "%s: NCCL: %s.", operation, ncclGetErrorString(result));
  }

  ncclComm_t communicator_;
  SideStream* side_ = nullptr;
  ncclResult_t error_ = ncclSuccess;
  int rank_ = 0;
  int size_ = 0;
};

}  // namespace jrt
