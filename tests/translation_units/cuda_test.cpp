// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include "translation_units/check.hpp"

namespace jrt::test {

OperatorRun run_portable(const OperatorCall& call);
OperatorRun run_hopper(const OperatorCall& call);

TEST_CASE("translation units for two lists of architectures use one operator in one program") {
  int major = 0;
  REQUIRE(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess);
  if (major != 9) {
    MESSAGE("one of the translation units has kernels for sm_90a alone");
    return;
  }
  check_units(run_portable, run_hopper, true);
}

}  // namespace jrt::test
