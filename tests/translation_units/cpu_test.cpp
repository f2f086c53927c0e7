// SPDX-License-Identifier: Apache-2.0
#include "translation_units/check.hpp"

namespace jrt::test {

OperatorRun run_baseline(const OperatorCall& call);
OperatorRun run_native(const OperatorCall& call);

TEST_CASE("translation units for two instruction sets use one operator in one program") {
#if defined(JRT_TEST_UNITS_DIFFER)
  constexpr bool differ = true;
#else
  constexpr bool differ = false;
#endif
  check_units(run_baseline, run_native, differ);
}

}  // namespace jrt::test
