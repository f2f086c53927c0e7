// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "jrt_lm/activations.hpp"
#include "jrt_lm/device_model.hpp"
#include "jrt_lm/pass.hpp"
#include "jrt_lm/step_kernel.hpp"
#include "jrt_lm/step_plan.hpp"

namespace jrt_lm {

/// What the blocks of a step exchange numbers through (step_exchange.cuh). Steps that follow one another may share it.
template <class Device>
struct StepMemory {
  template <class T>
  using Array = typename Device::template Array<T>;

  Array<std::byte> exchange{};
  Array<std::uint32_t> arrivals{};

  StepMemory() = default;
  StepMemory(Device& device, std::int64_t bytes) : exchange(device, 2 * bytes), arrivals(device, 2) {
    exchange.upload(std::vector<std::byte>(static_cast<std::size_t>(2 * bytes), std::byte{0xFF}));
  }
  [[nodiscard]] std::int64_t bytes() const { return exchange.size() / 2; }
};

/// What a prompt is beside a step: rows that are tokens of one sequence, of the last of which alone there are logits.
struct PromptRows {
  bool is_prompt = false;
  const std::int32_t* encoder_tokens = nullptr;  ///< M, the device's; null: none of these prompts has an encoder region
};

/// A step of some rows as one kernel, where there is one: rows are sequences, staged tokens of sequences, or a prompt.
template <class Device, class Element>
class WholeStep {
 public:
  using Model = DeviceModel<Device, Element>;
  using Logits = LogitRows<Device, Element>;
  using Memory = StepMemory<Device>;

  /// False, and there is nothing, if no kernel can do this step here. What the pass points to must stay where it is, and
  /// likewise logits and memory; without memory the step has its own.
  bool prepare([[maybe_unused]] Model& model, [[maybe_unused]] const Pass& pass, [[maybe_unused]] const Logits& logits,
               [[maybe_unused]] const PromptRows& prompt = {}, [[maybe_unused]] const Memory* memory = nullptr) {
    if constexpr (has_kernels) {
      if (model.mixers.step == nullptr) {
        return false;
      }
      StepPlan<Device, Element> plan = plan_of(model, pass, logits, prompt.encoder_tokens != nullptr);
      std::vector<Stage>& stages = plan.stages();
      inputs_.several = !pass.staging.empty() || prompt.is_prompt;
      blocks_ = model.mixers.step->blocks(model.config, pass.rows, stages.size(), inputs_.several);
      if (blocks_ == 0) {
        return false;
      }
      const std::vector<std::int32_t> first_tiles = divide_among_blocks(stages, blocks_);
      first_tiles_ = {model.device, std::ssize(first_tiles)};
      first_tiles_.upload(first_tiles);
      stages_ = {model.device, static_cast<std::int64_t>(stages.size() * sizeof(Stage))};
      stages_.upload(std::as_bytes(std::span(stages)));
      if (memory == nullptr) {
        memory_ = Memory(model.device, plan.exchange_bytes() + candidate_bytes(pass.rows, blocks_));
        memory = &memory_;
      }
      inputs_.stages = reinterpret_cast<const Stage*>(stages_.data());
      inputs_.first_tiles = first_tiles_.data();
      inputs_.stage_count = static_cast<std::int32_t>(stages.size());
      inputs_.rows = static_cast<std::int32_t>(pass.rows);
      inputs_.step_tokens = static_cast<std::int32_t>(pass.step_tokens);
      inputs_.first_result = prompt.is_prompt ? inputs_.rows - 1 : 0;
      inputs_.encoder_tokens = prompt.encoder_tokens;
      inputs_.tokens = pass.tokens;
      inputs_.positions = pass.positions;
      inputs_.slots = pass.slots;
      inputs_.slot_count = model.states.slots_of(0, nullptr).count;
      inputs_.slot_stride = model.states.slots_of(0, nullptr).slot_stride;
      inputs_.heads = static_cast<std::int32_t>(model.config.heads);
      inputs_.window_kv_heads = static_cast<std::int32_t>(model.config.window_kv_heads);
      inputs_.channels = static_cast<std::int32_t>(model.config.channels);
      inputs_.width = static_cast<std::int32_t>(model.config.width);
      inputs_.vocabulary = static_cast<std::int32_t>(model.config.vocabulary);
      inputs_.norm_epsilon = static_cast<float>(model.config.norm_epsilon);
      inputs_.window_scale = model.config.window_scale;
      inputs_.exchange = memory->exchange.data();
      inputs_.exchange_bytes = memory->bytes();
      inputs_.candidates = plan.exchange_bytes();
      inputs_.arrivals = memory->arrivals.data();
      return true;
    } else {
      return false;
    }
  }

  /// Memory for prompts of up to `step_rows` tokens; none if there is no kernel for them.
  static Memory memory_for_prompts([[maybe_unused]] Model& model, [[maybe_unused]] const Logits& logits) {
    if constexpr (has_kernels) {
      if (model.mixers.step != nullptr) {
        Pass pass;
        pass.rows = step_rows;
        StepPlan<Device, Element> plan = plan_of(model, pass, logits, model.config.has_encoder);
        if (const int blocks = model.mixers.step->blocks(model.config, pass.rows, plan.stages().size(), true); blocks > 0) {
          return {model.device, plan.exchange_bytes() + candidate_bytes(pass.rows, blocks)};
        }
      }
    }
    return {};
  }

  [[nodiscard]] bool exists() const { return stages_.size() > 0; }

  /// Enqueues the step.
  void launch([[maybe_unused]] Model& model) const {
    if constexpr (has_kernels) {
      model.device.launch_step(*model.mixers.step, inputs_, blocks_);
    }
  }

 private:
  static constexpr bool has_kernels = requires { &Device::launch_step; }
  &&std::is_same_v<jrt::ComputeType<Element>, float>;

  static StepPlan<Device, Element> plan_of(const Model& model, const Pass& pass, const Logits& logits, bool has_encoder) {
    const auto place_of = [&](std::size_t i) {
      return StagePlace{model.states.slots_of(i, nullptr).data, pass.staging.empty() ? nullptr : pass.staging[i].data};
    };
    return {model.config, model.weights, place_of, pass.rows, logits, has_encoder};
  }

  StepInputs inputs_{};
  int blocks_ = 0;
  typename Device::template Array<std::byte> stages_{};
  typename Device::template Array<std::int32_t> first_tiles_{};
  Memory memory_{};
};

}  // namespace jrt_lm
