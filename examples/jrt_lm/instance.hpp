// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "jrt_lm/language_model.hpp"

namespace jrt_lm {

/// One compiled combination of device and type. The build writes a file for the model of each, with a list of the mixers
/// that it chooses from, a file for each mixer of given dimensions, and a list of the combinations (CMakeLists.txt).
struct Instance {
  DeviceKind device;
  NumberType type;
  std::unique_ptr<LanguageModel> (*make)(const ModelConfig&, const WeightSource&, const ModelOptions&);
};

/// All that this program was compiled for.
std::vector<Instance> instances();

}  // namespace jrt_lm
