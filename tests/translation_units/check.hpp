// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <jrt/reference/linear_attention.hpp>
#include <string>

#include "support/tensor.hpp"
#include "translation_units/operation.hpp"

namespace jrt::test {

/// Both translation units' results agree with the formula, and their execution arguments have names of their own.
inline void check_units(OperatorRun (*first)(const OperatorCall&), OperatorRun (*second)(const OperatorCall&),
                        bool differ) {
  auto query = random_tensor<BFloat16>(operator_inputs, 1);
  auto key = random_tensor<BFloat16>(operator_inputs, 2);
  auto value = random_tensor<BFloat16>(operator_values, 3);
  auto expected = zero_tensor<BFloat16>(operator_values);
  PrefillArgs<Operator> args;
  args.query = view_bthd<const BFloat16>(query.values.data(), operator_inputs);
  args.key = view_bthd<const BFloat16>(key.values.data(), operator_inputs);
  args.value = view_bthd<const BFloat16>(value.values.data(), operator_values);
  args.output = view_of(expected);
  reference::prefill(args);
  const OperatorCall call{query.values, key.values, value.values};
  const OperatorRun runs[] = {first(call), second(call)};
  for (const OperatorRun& run : runs) {
    CAPTURE(run.properties);
    CHECK(run.error.empty());
    CHECK(relative_error(run.output, expected.values) <= 2 * tolerance<BFloat16>());
  }
  CHECK(size_of_call(args) == runs[0].workspace_bytes);
  CHECK((runs[0].workspace_bytes != runs[1].workspace_bytes) == differ);
  CHECK((runs[0].properties != runs[1].properties) == differ);
}

}  // namespace jrt::test
