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

/// A step of some rows as one kernel, where there is one, and the memory that is its own.
template <class Device, class Element>
class WholeStep {
 public:
  using Model = DeviceModel<Device, Element>;

  /// False, and there is nothing, if no kernel can do this step here. What the pass points to must stay where it is, and
  /// likewise `logits`.
  bool prepare([[maybe_unused]] Model& model, [[maybe_unused]] const Pass& pass,
               [[maybe_unused]] const LogitRows<Device, Element>& logits) {
    if constexpr (requires { &Device::launch_step; } && std::is_same_v<jrt::ComputeType<Element>, float>) {
      if (model.mixers.step == nullptr) {
        return false;
      }
      const auto place_of = [&](std::size_t i) {
        return StagePlace{model.states.slots_of(i, nullptr).data, pass.staging.empty() ? nullptr : pass.staging[i].data};
      };
      StepPlan<Device, Element> plan(model.config, model.weights, place_of, pass.rows, logits);
      std::vector<Stage>& stages = plan.stages();
      blocks_ = model.mixers.step->blocks(model.config, pass.rows, stages.size());
      if (blocks_ == 0) {
        return false;
      }
      divide_among_blocks(stages, blocks_);
      stages_ = Array<std::byte>(model.device, static_cast<std::int64_t>(stages.size() * sizeof(Stage)));
      stages_.upload(std::as_bytes(std::span(stages)));
      const std::int64_t exchange_bytes = plan.exchange_bytes() + candidate_bytes(pass.rows, blocks_);
      exchange_ = Array<std::byte>(model.device, 2 * exchange_bytes);
      exchange_.upload(std::vector<std::byte>(static_cast<std::size_t>(2 * exchange_bytes), std::byte{0xFF}));
      arrivals_ = Array<std::uint32_t>(model.device, 2);
      inputs_.stages = reinterpret_cast<const Stage*>(stages_.data());
      inputs_.stage_count = static_cast<std::int32_t>(stages.size());
      inputs_.rows = static_cast<std::int32_t>(pass.rows);
      inputs_.step_tokens = static_cast<std::int32_t>(pass.step_tokens);
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
      inputs_.exchange = exchange_.data();
      inputs_.exchange_bytes = exchange_bytes;
      inputs_.candidates = plan.exchange_bytes();
      inputs_.arrivals = arrivals_.data();
      return true;
    } else {
      return false;
    }
  }

  [[nodiscard]] bool exists() const { return stages_.size() > 0; }

  /// Enqueues the step.
  void launch([[maybe_unused]] Model& model) const {
    if constexpr (requires { &Device::launch_step; }) {
      model.device.launch_step(*model.mixers.step, inputs_, blocks_);
    }
  }

 private:
  template <class T>
  using Array = typename Device::template Array<T>;

  StepInputs inputs_{};
  int blocks_ = 0;
  Array<std::byte> stages_{};
  Array<std::byte> exchange_{};
  Array<std::uint32_t> arrivals_{};
};

}  // namespace jrt_lm
