// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/nccl_ranks.cuh"

#include <stdexcept>
#include <string>

#if defined(JRT_LM_NCCL)
#include <nccl.h>

#include <chrono>
#include <jrt/distributed/nccl.cuh>
#include <memory>
#include <thread>
#include <vector>

#include "jrt_lm/require.hpp"
#endif

namespace jrt_lm {

#if defined(JRT_LM_NCCL)

namespace {

void check(ncclResult_t result, const char* what) {
  if (result != ncclSuccess) {
    throw std::runtime_error(std::string("NCCL, ") + what + ": " + ncclGetErrorString(result));
  }
}

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA, ") + what + ": " + cudaGetErrorString(error));
  }
}

/// A stream of the calling thread's device, beside its others.
class OwnStream {
 public:
  OwnStream() {
    int lowest = 0;
    int highest = 0;
    check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "priorities of streams");
    check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest), "stream for exchanges");
  }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  ~OwnStream() { cudaStreamDestroy(stream_); }
  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class NcclRanks final : public RankGroup {
 public:
  explicit NcclRanks(int ranks) : communicators_(static_cast<std::size_t>(ranks)) {
    check(ncclCommInitAll(communicators_.data(), ranks, nullptr), "connecting GPUs");
    try {
      connect();
    } catch (...) {
      release(ncclCommAbort);
      throw;
    }
  }
  ~NcclRanks() override { release(aborted() ? ncclCommAbort : ncclCommDestroy); }

  [[nodiscard]] ncclComm_t& of_rank(int rank) { return communicators_.at(static_cast<std::size_t>(rank)); }

 private:
  void end_exchanges() override {}  // ranks look: each aborts its own communicator, which nobody else may use

  void release(ncclResult_t (*by)(ncclComm_t)) {
    for (ncclComm_t& communicator : communicators_) {
      if (communicator != nullptr) {
        static_cast<void>(by(communicator));
        communicator = nullptr;
      }
    }
  }

  /// One exchange of each kind. NCCL connects two ranks in the first call that needs it, and that may wait for what
  /// another rank has on its GPU: with a thread for each rank, that could already be a kernel which waits for this one. In
  /// one group of calls of one thread, all are connected before anything runs.
  void connect() {
    constexpr std::size_t bytes = std::size_t{1} << 20;
    struct Rank {
      Rank() = default;
      Rank(const Rank&) = delete;
      Rank& operator=(const Rank&) = delete;
      ~Rank() { cudaFree(memory); }
      std::unique_ptr<OwnStream> stream;
      char* memory = nullptr;  // that of all ranks
    };
    std::vector<Rank> ranks(communicators_.size());
    const auto for_ranks = [&](const auto& function) {
      for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
        check(cudaSetDevice(static_cast<int>(rank)), "device");
        function(static_cast<int>(rank), ranks[rank]);
      }
    };
    const auto in_group = [&](const auto& function) {
      check(ncclGroupStart(), "group");
      try {
        for_ranks(function);
      } catch (...) {
        static_cast<void>(ncclGroupEnd());  // or it would stay open for the thread's later calls
        throw;
      }
      check(ncclGroupEnd(), "first exchange");
      const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(2);
      for_ranks([&](int r, const Rank& rank) {
        cudaError_t done = cudaErrorNotReady;
        while ((done = cudaStreamQuery(rank.stream->get())) == cudaErrorNotReady) {
          if (std::chrono::steady_clock::now() > limit) {
            release(ncclCommAbort);  // or freeing memory would wait for them
            throw std::runtime_error("NCCL, first exchange: GPU " + std::to_string(r) + " has waited for 2 minutes");
          }
          std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
        check(done, "first exchange");
      });
    };
    for_ranks([&](int, Rank& rank) {
      rank.stream = std::make_unique<OwnStream>();
      check(cudaMalloc(&rank.memory, bytes * ranks.size()), "memory");
    });
    in_group([&](int r, const Rank& rank) {
      const std::size_t own = static_cast<std::size_t>(r) * bytes;
      check(ncclAllGather(rank.memory + own, rank.memory, bytes, ncclInt8, of_rank(r), rank.stream->get()), "all-gather");
    });
    in_group([&](int r, const Rank& rank) {
      if (r + 1 < static_cast<int>(ranks.size())) {
        check(ncclSend(rank.memory, bytes, ncclInt8, r + 1, of_rank(r), rank.stream->get()), "send");
      }
      if (r > 0) {
        check(ncclRecv(rank.memory + bytes, bytes, ncclInt8, r - 1, of_rank(r), rank.stream->get()), "receive");
      }
    });
  }

  std::vector<ncclComm_t> communicators_;
};

class NcclLink final : public RankLink<jrt::Cuda> {
 public:
  NcclLink(NcclRanks& group, int rank)
      : group_(group), of_group_(group.of_rank(rank)), side_(stream_.get()), communicator_(of_group_, &side_) {}

  [[nodiscard]] int rank() const override { return communicator_.rank(); }
  [[nodiscard]] int size() const override { return communicator_.size(); }
  jrt::Status all_gather(const void* send, void* receive, std::size_t bytes, const jrt::Cuda& on) override {
    return group_.aborted() ? another_failed() : communicator_.all_gather(send, receive, bytes, on);
  }
  jrt::Status exchange(std::span<const jrt::OutgoingBytes> outgoing, std::span<const jrt::IncomingBytes> incoming,
                       const jrt::Cuda& on) override {
    return group_.aborted() ? another_failed() : communicator_.exchange(outgoing, incoming, on);
  }
  jrt::Status overlap(const jrt::Cuda& on, const Part& transfers, const Part& work) override {
    return communicator_.overlap(on, transfers, work);
  }
  /// Of this rank; the others look at the group.
  void abort() override {
    communicator_.abort();
    of_group_ = nullptr;  // freed
  }
  void await(const jrt::Cuda& on) {
    for (;;) {
      const cudaError_t done = cudaStreamQuery(on.stream());
      if (done == cudaSuccess) {
        return;
      }
      if (done != cudaErrorNotReady) {
        check(done, "work on the device");
      }
      if (group_.aborted()) {
        require(another_failed());
      }
      ncclResult_t failure = ncclSuccess;
      check(ncclCommGetAsyncError(communicator_.get(), &failure), "state");
      check(failure, "exchange");
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

 private:
  static jrt::Status another_failed() {
    return jrt::Status::error(jrt::StatusCode::device_error, "another rank has failed, or the time limit was reached.");
  }

  NcclRanks& group_;
  ncclComm_t& of_group_;
  OwnStream stream_;
  jrt::SideStream side_;
  jrt::NcclCommunicator communicator_;
};

}  // namespace

std::unique_ptr<RankGroup> make_nccl_group(int ranks) {
  return std::make_unique<NcclRanks>(ranks);
}
std::unique_ptr<RankLink<jrt::Cuda>> make_nccl_link(RankGroup& group, int rank) {
  return std::make_unique<NcclLink>(static_cast<NcclRanks&>(group), rank);
}
void await_nccl(RankLink<jrt::Cuda>& link, const jrt::Cuda& on) {
  static_cast<NcclLink&>(link).await(on);
}

#else

namespace {

[[noreturn]] void fail() {
  throw std::runtime_error("several GPUs need NCCL, which was not found when this program was built");
}

}  // namespace

std::unique_ptr<RankGroup> make_nccl_group(int /*ranks*/) {
  fail();
}
std::unique_ptr<RankLink<jrt::Cuda>> make_nccl_link(RankGroup& /*group*/, int /*rank*/) {
  fail();
}
void await_nccl(RankLink<jrt::Cuda>& /*link*/, const jrt::Cuda& /*on*/) {
  fail();
}

#endif

}  // namespace jrt_lm
