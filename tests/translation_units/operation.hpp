// SPDX-License-Identifier: Apache-2.0
// One operator in a program of two translation units that are compiled for different instruction sets or GPU
// architectures. Each has a function that runs it.
#pragma once

#include <cstddef>
#include <jrt/mixer/linear_attention.hpp>
#include <jrt/prefill.hpp>
#include <string>
#include <vector>

namespace jrt::test {

/// Packets of the CPU differ in width, and so do rows of its working state; on Hopper the kernels do.
using Operator = BasedLinearAttention<BFloat16, 16, 72>;

inline constexpr std::int64_t operator_tokens = 150;
inline constexpr TensorShape operator_inputs{1, operator_tokens, 2, 16};
inline constexpr TensorShape operator_values{1, operator_tokens, 2, 72};

struct OperatorCall {
  std::vector<BFloat16> query;
  std::vector<BFloat16> key;
  std::vector<BFloat16> value;
};

/// What a translation unit made of the call, and what it was compiled for.
struct OperatorRun {
  std::vector<BFloat16> output;
  std::size_t workspace_bytes = 0;
  std::string error;       // of the call; empty if it succeeded
  std::string properties;  // the name of its execution argument, as the linker sees it
};

/// In a third translation unit, which is compiled as the first of the two.
std::size_t size_of_call(const PrefillArgs<Operator>& args);

}  // namespace jrt::test
