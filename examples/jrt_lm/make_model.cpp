// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>
#include <string>

#include "jrt_lm/instance.hpp"

namespace jrt_lm {

const char* name_of(DeviceKind device) {
  return device == DeviceKind::cpu ? "cpu" : "cuda";
}

const char* name_of(NumberType type) {
  switch (type) {
    case NumberType::float64:
      return "float64";
    case NumberType::float32:
      return "float32";
    case NumberType::float16:
      return "float16";
    default:
      return "bfloat16";
  }
}

std::unique_ptr<LanguageModel> make_model(const ModelConfig& config, const WeightSource& weights,
                                          const ModelOptions& options) {
  std::string compiled;
  for (const Instance& instance : instances()) {
    if (instance.device == options.device && instance.type == options.type) {
      return instance.make(config, weights, options);
    }
    compiled += std::string("; ") + name_of(instance.device) + " " + name_of(instance.type);
  }
  throw std::runtime_error(config.source + ": needs " + name_of(options.device) + " " + name_of(options.type) +
                           ", but this program was compiled for" + compiled.substr(1) +
                           " (JRT_LM_CPU_TYPES and JRT_LM_CUDA_TYPES in examples/jrt_lm/CMakeLists.txt add to it)");
}

}  // namespace jrt_lm
