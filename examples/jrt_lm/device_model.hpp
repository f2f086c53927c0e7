// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "jrt_lm/language_model.hpp"
#include "jrt_lm/layer_states.hpp"
#include "jrt_lm/mixers.hpp"
#include "jrt_lm/model_weights.hpp"

namespace jrt_lm {

/// A model in a device's memory. `Device` (cpu_device.hpp, cuda_device.cuh) has memory, matrix products and the small
/// functions between them; the mixers are the library's, on `device.execution()`, compiled elsewhere for their dimensions.
template <class Device, class Element>
struct DeviceModel {
  DeviceModel(Mixers<Device, Element> its_mixers, ModelConfig its_config, const WeightSource& source,
              const ModelOptions& options)
      : config(std::move(its_config)),
        device(options),
        mixers(std::move(its_mixers)),
        weights(device, config, source),
        states(device, config, mixers, options.slots) {}

  ModelConfig config;
  Device device;
  Mixers<Device, Element> mixers;
  ModelWeights<Device, Element> weights;
  LayerStates<Device, Element> states;
};

}  // namespace jrt_lm
