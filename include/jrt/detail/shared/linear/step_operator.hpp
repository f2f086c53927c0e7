// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>

#include "jrt/mixer/linear_attention.hpp"

namespace jrt::detail {

/// Linear attention with only the policies that matter to a decode step: operators that differ elsewhere (mask, padding,
/// split) share the code of their steps.
template <Element ElementT, Element Scalar, class Map, class NormaliserT, int ValueDim>
struct StepOperator {
  using Element = ElementT;
  using StateScalar = Scalar;
  using FeatureMap = Map;
  using Mask = CausalMask;
  using Normaliser = NormaliserT;
  using Padding = DropPadding;
  using Split = OccupancySplit<>;
  static constexpr int value_dim = ValueDim;
};

template <class Config>
using StepOnly = StepOperator<typename Config::Element, typename Config::StateScalar, typename Config::FeatureMap,
                              typename Config::Normaliser, Config::value_dim>;

/// Arguments of the operations that go through a state token by token.
template <class Args, class Config>
concept StepArgsOf = std::same_as<Args, DecodeArgs<Config>> || std::same_as<Args, StagedStepArgs<Config>> ||
    std::same_as<Args, CommitArgs<Config>>;

}  // namespace jrt::detail
