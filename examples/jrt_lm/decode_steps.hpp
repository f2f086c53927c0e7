// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/state.hpp>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "jrt_lm/activations.hpp"
#include "jrt_lm/layers.hpp"
#include "jrt_lm/whole_step.hpp"

namespace jrt_lm {

/// Steps of a number of sequences: their tokens, and the whole step in a form that the device can repeat.
template <class Device, class Element>
struct StepBatch {
  template <class T>
  using Array = typename Device::template Array<T>;

  Array<std::int32_t> tokens{};
  Array<std::int32_t> positions{};
  Array<std::int32_t> slots{};
  Activations<Device, Element> activations{};
  LogitRows<Device, Element> logits{};
  WholeStep<Device, Element> whole{};  ///< if it exists; else there are separate kernels
  typename Device::Graph graph{};
};

/// Decode steps of a model, prepared once for each number of sequences.
template <class Device, class Element>
class DecodeSteps {
 public:
  using Batch = StepBatch<Device, Element>;

  /// `separate_kernels`: even where one kernel does a whole step.
  DecodeSteps(DeviceModel<Device, Element>& model, Layers<Device, Element>& layers, bool separate_kernels)
      : model_(model), layers_(layers), separate_kernels_(separate_kernels) {}

  /// The step of so many sequences: everything but its tokens, slots and positions, which its graph finds in its arrays.
  Batch& batch_of(std::int64_t rows) {
    auto& batch = batches_[rows];
    if (batch == nullptr) {
      auto prepared = std::make_unique<Batch>();
      prepare(*prepared, rows);
      batch = std::move(prepared);
    }
    return *batch;
  }

  static Pass pass_of(const Batch& batch, std::int64_t rows) {
    Pass pass;
    pass.rows = rows;
    pass.tokens = batch.tokens.data();
    pass.positions = batch.positions.data();
    pass.slots = batch.slots.data();
    return pass;
  }

 private:
  template <class T>
  using Array = typename Device::template Array<T>;

  void prepare(Batch& batch, std::int64_t rows) {
    batch.tokens = Array<std::int32_t>(model_.device, rows);
    batch.positions = Array<std::int32_t>(model_.device, rows);
    batch.slots = Array<std::int32_t>(model_.device, rows);
    batch.activations.reserve(model_.device, model_.config, rows, 0);
    batch.logits.reserve(model_.device, rows, model_.config);
    batch.tokens.upload(std::vector<std::int32_t>(static_cast<std::size_t>(rows)));
    batch.positions.upload(std::vector<std::int32_t>(static_cast<std::size_t>(rows)));
    batch.slots.upload(std::vector<std::int32_t>(static_cast<std::size_t>(rows), jrt::skip_slot));
    const bool is_whole = !separate_kernels_ && batch.whole.prepare(model_, pass_of(batch, rows), batch.logits);
    const auto run = [this, &batch, rows, is_whole] {
      if (is_whole) {
        batch.whole.launch(model_);
        batch.logits.rows = rows;
        return;
      }
      layers_.run(pass_of(batch, rows), batch.activations, {});
      batch.logits.rows = 0;
      layers_.finish(batch.activations, nullptr, rows, batch.logits);
    };
    run();  // rows of padding: it changes no state, but all memory is there afterwards, and all kernels are loaded
    batch.graph = model_.device.capture(run);
  }

  DeviceModel<Device, Element>& model_;
  Layers<Device, Element>& layers_;
  bool separate_kernels_;
  std::map<std::int64_t, std::unique_ptr<Batch>> batches_;
};

}  // namespace jrt_lm
