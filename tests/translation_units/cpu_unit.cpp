// SPDX-License-Identifier: Apache-2.0
// Compiled twice: JRT_TEST_UNIT is the function's name.
#include <cstddef>
#include <jrt/cpu/linear_attention.hpp>
#include <typeinfo>

#include "translation_units/operation.hpp"

namespace jrt::test {

OperatorRun JRT_TEST_UNIT(const OperatorCall& call) {
  OperatorRun run;
  run.output.resize(call.value.size());
  run.properties = typeid(Cpu<>).name();
  PrefillArgs<Operator> args;
  args.query = view_bthd(call.query.data(), operator_inputs);
  args.key = view_bthd(call.key.data(), operator_inputs);
  args.value = view_bthd(call.value.data(), operator_values);
  args.output = view_bthd(run.output.data(), operator_values);
  std::vector<std::byte> workspace(prefill_workspace_bytes(args, Cpu{}));
  run.workspace_bytes = workspace.size();
  run.error = prefill(args, {workspace.data(), workspace.size()}, Cpu{}).message();
  return run;
}

}  // namespace jrt::test
