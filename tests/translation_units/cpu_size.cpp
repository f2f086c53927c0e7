// SPDX-License-Identifier: Apache-2.0
// For the first instruction set or list alone, and first of all that the linker sees: under one name, its size would be
// everybody's.
#include <jrt/cpu/linear_attention.hpp>

#include "translation_units/operation.hpp"

namespace jrt::test {

std::size_t size_of_call(const PrefillArgs<Operator>& args) {
  return prefill_workspace_bytes(args, Cpu{});
}

}  // namespace jrt::test
