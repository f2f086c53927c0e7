// SPDX-License-Identifier: Apache-2.0
#include <jrt/dispatch.hpp>

#include <doctest/doctest.h>

#include <jrt/policy/elementwise_maps.hpp>
#include <string>
#include <type_traits>

namespace jrt::test {
namespace {

using Causal16 = BasedLinearAttention<float, 16, 64>;
using Prefix16 = PrefixLinearAttention<float, 16, 64>;
using Prefix32 = PrefixLinearAttention<BFloat16, 32, 64>;
struct Elu : BasedLinearAttention<Half, 16, 64> {
  using FeatureMap = EluPlusOne<16>;
  using Normaliser = Unnormalised;
  using Mask = FullMask;
};
using Window = SlidingWindowAttention<float, 64, 0>;
struct Rotated : SlidingWindowAttention<float, 64, 128> {
  using Rotary = RotaryHalves<64>;
};
using Convolution = GatedConvolution<double, 3>;
using Hybrid = HybridAttention<Prefix32, WindowBeside<Prefix32, 128>>;
struct Named : Convolution {
  static constexpr const char* label = "mine";
};
using Compiled = Operators<Causal16, Prefix16, Prefix32, Elu, Window, Rotated, Hybrid, Convolution, Named>;

/// Whether `wanted` leads to `Config` and to nothing else.
template <class Config>
bool leads_to(const OperatorDescription& wanted) {
  int index = -7;
  const Status status = Compiled::find(wanted, index);
  INFO(std::string(status.message()));
  CHECK(status.ok());
  return status.ok() &&
         Compiled::visit(index, []<class Found>(std::type_identity<Found>) { return std::is_same_v<Found, Config>; });
}

std::string refusal(const OperatorDescription& wanted) {
  int index = -7;
  const Status status = Compiled::find(wanted, index);
  CHECK(status.code() == StatusCode::invalid_argument);
  CHECK(index == -7);
  return std::string(status.message());
}

TEST_CASE("names and numbers lead to an operator's type") {
  CHECK(leads_to<Causal16>({.kind = "linear", .element = "float32", .d = 16, .dv = 64, .mask = "causal"}));
  CHECK(leads_to<Prefix16>({.kind = "linear", .element = "float32", .mask = "prefix"}));
  CHECK(leads_to<Prefix32>({.kind = "linear", .d = 32, .feature_map = "taylor2"}));
  CHECK(leads_to<Prefix32>({.kind = "linear", .d = 32, .feature_map = "taylor2/symmetric", .state = "float32"}));
  CHECK(leads_to<Elu>({.feature_map = "elu+1"}));
  CHECK(leads_to<Elu>({.normaliser = "none"}));
  CHECK(leads_to<Elu>({.mask = "full"}));
  CHECK(leads_to<Window>({.kind = "window", .left_window = 0}));
  CHECK(leads_to<Rotated>({.kind = "window", .rotary = "halves"}));
  CHECK(leads_to<Hybrid>({.kind = "hybrid"}));
  CHECK(leads_to<Hybrid>({.mask = "prefix", .left_window = 128}));
  CHECK(leads_to<Named>({.kernel_width = 3, .label = "mine"}));
  static_assert(describe_operator<Hybrid>().d == 32 && describe_operator<Hybrid>().left_window == 128);
  static_assert(describe_operator<Convolution>().d == -1);
}

TEST_CASE("what was not compiled is refused with what was asked for and what there is") {
  CHECK(refusal({.kind = "window", .element = "bfloat16", .left_window = 64}) ==
        "dispatch: no compiled operator is 'window bfloat16 L64', but only window float32 L0; window float32 L128.");
  CHECK(refusal({.kind = "linear", .d = 24}) ==
        "dispatch: no compiled operator is 'linear d24', but only linear d16; linear d32.");
  CHECK(refusal({.kind = "Linear"}) ==
        "dispatch: no compiled operator is 'Linear', but only linear; window; hybrid; convolution.");
  CHECK(refusal({.feature_map = "taylor"})
            .starts_with("dispatch: no compiled operator is 'taylor', but only linear taylor2/"));
  CHECK(refusal({.kind = "linear", .kernel_width = 3}) ==
        "dispatch: no compiled operator is 'linear K3', but only linear.");
}

TEST_CASE("a request that leaves a choice is refused, with the choice") {
  CHECK(refusal({.kind = "linear", .element = "float32"}) ==
        "dispatch: more than one compiled operator is 'linear float32'; say which: causal; prefix.");
  CHECK(refusal({.kind = "window"}) ==
        "dispatch: more than one compiled operator is 'window'; say which: L0 rotary=none; L128 rotary=halves.");
  CHECK(refusal({}).starts_with("dispatch: more than one compiled operator is ''; say which: linear float32 d16 dv64"));
  CHECK(refusal({}).ends_with(" more."));
  const std::string long_name(400, 'x');
  CHECK(refusal({.kind = long_name}).size() < 252);
}

TEST_CASE("a visit may return a function to keep") {
  int index = 0;
  REQUIRE(Compiled::find({.kind = "hybrid"}, index).ok());
  int (*const rows)() = Compiled::visit(index, []<class Config>(std::type_identity<Config>) -> int (*)() {
    return [] { return StateFormatOf<Config>::rows; };
  });
  CHECK(rows() == StateFormatOf<Hybrid>::rows);
  int calls = 0;
  Compiled::visit(index, [&]<class Config>(std::type_identity<Config>) { calls += std::is_same_v<Config, Hybrid>; });
  CHECK(calls == 1);
}

}  // namespace
}  // namespace jrt::test
