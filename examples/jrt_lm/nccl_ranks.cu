// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/nccl_ranks.cuh"

#include <stdexcept>
#include <string>
#include <vector>

#include "jrt_lm/require.hpp"

#if defined(JRT_LM_NCCL)
#include <nccl.h>

#include <chrono>
#include <jrt/distributed/nccl.cuh>
#endif

namespace jrt_lm {

#if defined(JRT_LM_NCCL)

namespace {

void check(ncclResult_t result, const char* what) {
  if (result != ncclSuccess) {
    throw std::runtime_error(std::string("NCCL, ") + what + ": " + ncclGetErrorString(result));
  }
}

struct NcclRanks final : RankGroup {
  explicit NcclRanks(int ranks) : communicators(static_cast<std::size_t>(ranks)) {
    check(ncclCommInitAll(communicators.data(), ranks, nullptr), "connecting GPUs");
  }
  ~NcclRanks() override {
    for (ncclComm_t communicator : communicators) {
      if (communicator != nullptr) {
        ncclCommDestroy(communicator);
      }
    }
  }
  std::vector<ncclComm_t> communicators;
};

/// A stream of the calling thread's device, beside its others.
class OwnStream {
 public:
  OwnStream() {
    int lowest = 0;
    int highest = 0;
    if (cudaDeviceGetStreamPriorityRange(&lowest, &highest) != cudaSuccess ||
        cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest) != cudaSuccess) {
      throw std::runtime_error("CUDA: there is no stream for the exchanges of ranks");
    }
  }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  ~OwnStream() { cudaStreamDestroy(stream_); }
  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class NcclLink final : public RankLink<jrt::Cuda> {
 public:
  explicit NcclLink(ncclComm_t& of_group) : of_group_(of_group), side_(stream_.get()), communicator_(of_group, &side_) {}

  [[nodiscard]] int rank() const override { return communicator_.rank(); }
  [[nodiscard]] int size() const override { return communicator_.size(); }
  jrt::Status all_gather(const void* send, void* receive, std::size_t bytes, const jrt::Cuda& on) override {
    return communicator_.all_gather(send, receive, bytes, on);
  }
  jrt::Status exchange(std::span<const jrt::OutgoingBytes> outgoing, std::span<const jrt::IncomingBytes> incoming,
                       const jrt::Cuda& on) override {
    return communicator_.exchange(outgoing, incoming, on);
  }
  jrt::Status overlap(const jrt::Cuda& on, const Part& transfers, const Part& work) override {
    return communicator_.overlap(on, transfers, work);
  }
  void abort() override {
    communicator_.abort();
    of_group_ = nullptr;  // freed
  }
  void await(const jrt::Cuda& on) {
    const jrt::Status status = communicator_.await_ranks(std::chrono::hours(1), on);
    if (!status.ok()) {
      of_group_ = nullptr;
    }
    require(status);
  }

 private:
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
  return std::make_unique<NcclLink>(static_cast<NcclRanks&>(group).communicators.at(static_cast<std::size_t>(rank)));
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
