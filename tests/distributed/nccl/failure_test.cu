// SPDX-License-Identifier: Apache-2.0
// Ranks that do not take part.
#include "distributed/nccl/ranks.cuh"

namespace jrt::test {
namespace {

static_assert(Communicator<NcclCommunicator, Cuda>);

TEST_CASE("a rank that stays away ends in an error within the time limit") {
  if (devices() < 2) {
    return;
  }
  ncclComm_t communicators[2];
  REQUIRE(ncclCommInitAll(communicators, 2, nullptr) == ncclSuccess);
  std::barrier<> both(2);
  Status waited;
  Status afterwards;
  const auto run = [&](int rank) {
    cudaSetDevice(rank);
    cudaStream_t stream = nullptr;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    {
      const DeviceCopy<float> memory(2);
      NcclCommunicator communicator(communicators[rank]);
      const Cuda on{stream};
      const auto gather = [&] { return communicator.all_gather(memory.data() + rank, memory.data(), sizeof(float), on); };
      // NCCL connects the ranks in the first call, in which the host waits: one in which all take part.
      both.arrive_and_wait();
      JRT_REQUIRE_OK(gather());
      JRT_REQUIRE_OK(communicator.await_ranks(std::chrono::seconds(30), on));
      both.arrive_and_wait();
      if (rank == 0) {
        JRT_REQUIRE_OK(gather());
        waited = communicator.await_ranks(std::chrono::milliseconds(500), on);
        afterwards = gather();
      }
      both.arrive_and_wait();
      communicator.abort();
      both.arrive_and_wait();  // memory goes when no rank waits for another
    }
    cudaStreamDestroy(stream);
  };
  std::thread other([&] { run(1); });
  run(0);
  other.join();
  cudaSetDevice(0);
  CHECK(waited.code() == StatusCode::device_error);
  CHECK_FALSE(afterwards.ok());
}

}  // namespace
}  // namespace jrt::test
