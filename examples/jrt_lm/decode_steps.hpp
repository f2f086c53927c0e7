// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <jrt/state.hpp>
#include <map>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "jrt_lm/activations.hpp"
#include "jrt_lm/layers.hpp"
#include "jrt_lm/step_kernel.hpp"
#include "jrt_lm/step_plan.hpp"

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
  Array<std::byte> stages{};  ///< of one kernel for the whole step; empty: there are separate ones
  Array<std::byte> exchange{};
  Array<std::uint32_t> arrivals{};
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
  using Sum = jrt::ComputeType<Element>;
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
    if (prepare_whole_step(batch, rows)) {
      return;
    }
    const auto run = [this, &batch, rows] {
      layers_.run(pass_of(batch, rows), batch.activations, {});
      batch.logits.rows = 0;
      layers_.finish(batch.activations, nullptr, rows, batch.logits);
    };
    run();  // rows of padding: it changes no state, but all memory is there afterwards, and all kernels are loaded
    batch.graph = model_.device.capture(run);
  }

  /// The step as one kernel, if there is one that can run here: false otherwise.
  bool prepare_whole_step([[maybe_unused]] Batch& batch, [[maybe_unused]] std::int64_t rows) {
    if constexpr (requires { &Device::launch_step; } && std::is_same_v<Sum, float>) {
      if (model_.mixers.step == nullptr || separate_kernels_) {
        return false;
      }
      const auto state_of = [this](std::size_t i) { return static_cast<void*>(model_.states.slots_of(i, nullptr).data); };
      StepPlan<Device, Element> plan(model_.config, model_.weights, state_of, rows, batch.logits);
      std::vector<Stage>& stages = plan.stages();
      const int blocks = model_.mixers.step->blocks(model_.config, rows, stages.size());
      if (blocks == 0) {
        return false;
      }
      divide_among_blocks(stages, blocks);
      batch.stages = Array<std::byte>(model_.device, static_cast<std::int64_t>(stages.size() * sizeof(Stage)));
      batch.stages.upload(std::as_bytes(std::span(stages)));
      const std::int64_t exchange_bytes = plan.exchange_bytes() + candidate_bytes(rows, blocks);
      batch.exchange = Array<std::byte>(model_.device, 2 * exchange_bytes);
      batch.exchange.upload(std::vector<std::byte>(static_cast<std::size_t>(2 * exchange_bytes), std::byte{0xFF}));
      batch.arrivals = Array<std::uint32_t>(model_.device, 2);
      StepInputs inputs;
      inputs.stages = reinterpret_cast<const Stage*>(batch.stages.data());
      inputs.stage_count = static_cast<std::int32_t>(stages.size());
      inputs.rows = static_cast<std::int32_t>(rows);
      inputs.tokens = batch.tokens.data();
      inputs.positions = batch.positions.data();
      inputs.slots = batch.slots.data();
      inputs.slot_count = model_.states.slots_of(0, nullptr).count;
      inputs.slot_stride = model_.states.slots_of(0, nullptr).slot_stride;
      inputs.heads = static_cast<std::int32_t>(model_.config.heads);
      inputs.window_kv_heads = static_cast<std::int32_t>(model_.config.window_kv_heads);
      inputs.channels = static_cast<std::int32_t>(model_.config.channels);
      inputs.width = static_cast<std::int32_t>(model_.config.width);
      inputs.vocabulary = static_cast<std::int32_t>(model_.config.vocabulary);
      inputs.norm_epsilon = static_cast<float>(model_.config.norm_epsilon);
      inputs.window_scale = model_.config.window_scale;
      inputs.exchange = batch.exchange.data();
      inputs.exchange_bytes = exchange_bytes;
      inputs.candidates = plan.exchange_bytes();
      inputs.arrivals = batch.arrivals.data();
      const auto run = [&] { model_.device.launch_step(*model_.mixers.step, inputs, blocks); };
      run();  // rows of padding, as below
      batch.graph = model_.device.capture(run);
      batch.logits.rows = rows;
      return true;
    } else {
      return false;
    }
  }

  DeviceModel<Device, Element>& model_;
  Layers<Device, Element>& layers_;
  bool separate_kernels_;
  std::map<std::int64_t, std::unique_ptr<Batch>> batches_;
};

}  // namespace jrt_lm
