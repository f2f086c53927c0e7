// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "jrt_lm/activations.hpp"
#include "jrt_lm/layers.hpp"
#include "jrt_lm/prefill_plan.hpp"
#include "jrt_lm/prompt_graphs.hpp"

namespace jrt_lm {

/// Prefill of one short prompt from a graph. All of its memory is the graphs' own and as large as the largest needs, but
/// for the mixers' workspace, whose growth shows.
template <class Device, class Element>
class ShortPrompts {
 public:
  using Logits = LogitRows<Device, Element>;

  ShortPrompts(DeviceModel<Device, Element>& model, Layers<Device, Element>& layers) : model_(model), layers_(layers) {}

  static bool takes(std::span<const Prompt> prompts, LogitsOf rows) {
    return Device::replays_prompts && prompts.size() == 1 && rows == LogitsOf::last_tokens && prompts[0].zero_keys == 0 &&
           std::ssize(prompts[0].tokens) <= short_prompt_tokens;
  }

  /// One prompt that `takes` says yes to; the last token's logits.
  Logits& read(std::span<const Prompt> prompt, std::span<const std::int64_t> tokens_read) {
    const PromptShape shape = short_prompt_shape(std::ssize(prompt[0].tokens), prompt[0].prefix);
    const PrefillPlan plan(prompt, shape, tokens_read);
    activations_.reserve(model_.device, model_.config, short_prompt_tokens,
                         model_.config.has_encoder ? short_prompt_tokens : 0);
    constexpr std::int64_t numbers_of_call = 8;
    activations_.upload(model_.device, plan.data(), plan.continues(), 2 * short_prompt_tokens + numbers_of_call);
    logits_.reserve(model_.device, 1, model_.config);
    const auto run = [&] {
      logits_.rows = 0;
      layers_.run_prompts(layers_.pass_of(plan, activations_), activations_, logits_, {});
    };
    const auto first_run = [&] {
      const std::byte* const scratch = activations_.scratch.data();
      const auto check_scratch = [&] {
        if (activations_.scratch.data() != scratch) {
          graphs_.clear();
        }
      };
      try {
        run();
      } catch (...) {
        check_scratch();  // it may be gone, and there was no memory for a larger one
        throw;
      }
      check_scratch();
    };
    graphs_.read(
        shape, first_run, [&] { return model_.device.capture(run); },
        [&](const auto& graph) { model_.device.launch(graph); });
    logits_.rows = 1;
    return logits_;
  }

 private:
  DeviceModel<Device, Element>& model_;
  Layers<Device, Element>& layers_;
  Activations<Device, Element> activations_;
  Logits logits_;
  PromptGraphs<typename Device::Graph> graphs_;
};

}  // namespace jrt_lm
