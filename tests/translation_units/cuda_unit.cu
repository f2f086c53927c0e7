// SPDX-License-Identifier: Apache-2.0
// Compiled twice: JRT_TEST_UNIT is the function's name.
#include <jrt/cuda/linear_attention.cuh>
#include <typeinfo>

#include "support/cuda_backend.cuh"
#include "translation_units/operation.hpp"

namespace jrt::test {

OperatorRun JRT_TEST_UNIT(const OperatorCall& call) {
  DeviceArray<BFloat16> query(call.query);
  DeviceArray<BFloat16> key(call.key);
  DeviceArray<BFloat16> value(call.value);
  DeviceArray<BFloat16> output(std::vector<BFloat16>(call.value.size()));
  PrefillArgs<Operator> args;
  args.query = view_bthd<const BFloat16>(query.data(), operator_inputs);
  args.key = view_bthd<const BFloat16>(key.data(), operator_inputs);
  args.value = view_bthd<const BFloat16>(value.data(), operator_values);
  args.output = view_bthd(output.data(), operator_values);
  OperatorRun run;
  run.workspace_bytes = prefill_workspace_bytes(args, Cuda{});
  DeviceArray<std::uint8_t> workspace(std::vector<std::uint8_t>(run.workspace_bytes));
  run.error = prefill(args, {workspace.data(), run.workspace_bytes}, Cuda{}).message();
  run.output = output.read();
  run.properties = typeid(Cuda).name();
  return run;
}

}  // namespace jrt::test
