// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <jrt/state.hpp>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "jrt_lm/activations.hpp"
#include "jrt_lm/language_model.hpp"
#include "jrt_lm/whole_step.hpp"

namespace jrt_lm {

/// Prefill of one prompt of at most `step_rows` tokens in the kernel of whole decode steps, prepared once for each number
/// of tokens: a prompt's encoder region is no longer than it is, so that its keys and values are rows, too.
template <class Device, class Element>
class WholePrompts {
 public:
  using Logits = LogitRows<Device, Element>;

  explicit WholePrompts(DeviceModel<Device, Element>& model) : model_(model) {}

  /// The last token's logits; null, and nothing is done, if there is no kernel for such prompts.
  Logits* read(std::span<const Prompt> prompts, LogitsOf rows, std::span<const std::int64_t> tokens_read) {
    if (prompts.size() != 1 || rows != LogitsOf::last_tokens || prompts[0].zero_keys != 0 ||
        std::ssize(prompts[0].tokens) > step_rows) {
      return nullptr;
    }
    const Prompt& prompt = prompts[0];
    Batch& batch = batch_of(std::ssize(prompt.tokens), prompt.prefix > 0);
    if (!batch.whole.exists()) {
      return nullptr;
    }
    model_.device.await(batch.was_sent);  // the host's copy is free again
    std::int32_t* to = batch.sent.data();
    *to++ = prompt.slot;
    *to++ = static_cast<std::int32_t>(prompt.prefix);
    to = std::copy(prompt.tokens.begin(), prompt.tokens.end(), to);
    const std::int64_t before = prompt.continues ? tokens_read[static_cast<std::size_t>(prompt.slot)] : 0;
    for (std::int64_t t = 0; t < std::ssize(prompt.tokens); ++t) {
      *to++ = static_cast<std::int32_t>(before + t);
    }
    model_.device.send(batch.sent.data(), batch.inputs.data(), batch.inputs.size());
    model_.device.record(batch.was_sent);
    if (!prompt.continues) {
      model_.states.clear(model_.device, prompt.slot);
    }
    model_.device.launch(batch.graph);
    logits_.rows = 1;
    return &logits_;
  }

 private:
  struct Batch {
    typename Device::template Array<std::int32_t> inputs{};  ///< slot, M, tokens, positions
    typename Device::template HostArray<std::int32_t> sent{};
    typename Device::Event was_sent{};
    WholeStep<Device, Element> whole{};
    typename Device::Graph graph{};
  };

  Batch& batch_of(std::int64_t tokens, bool has_encoder) {
    auto& batch = batches_[{tokens, has_encoder}];
    if (batch == nullptr) {
      auto prepared = std::make_unique<Batch>();
      prepare(*prepared, tokens, has_encoder);
      batch = std::move(prepared);
    }
    return *batch;
  }

  void prepare(Batch& batch, std::int64_t tokens, bool has_encoder) {
    Device& device = model_.device;
    if (batches_.size() == 1) {
      logits_.reserve(device, 1, model_.config);
      memory_ = WholeStep<Device, Element>::memory_for_prompts(model_, logits_);
    }
    if (memory_.bytes() == 0) {
      return;
    }
    batch.inputs = {device, 2 + 2 * tokens};
    batch.sent = typename Device::template HostArray<std::int32_t>(batch.inputs.size());
    batch.was_sent = Device::make_event();
    std::vector<std::int32_t> padding(static_cast<std::size_t>(batch.inputs.size()));
    padding[0] = jrt::skip_slot;
    batch.inputs.upload(padding);
    Pass pass;
    pass.rows = tokens;
    pass.step_tokens = tokens;
    pass.slots = batch.inputs.data();
    pass.tokens = batch.inputs.data() + 2;
    pass.positions = pass.tokens + tokens;
    const PromptRows prompt{true, has_encoder ? batch.inputs.data() + 1 : nullptr};
    if (batch.whole.prepare(model_, pass, logits_, prompt, &memory_)) {
      const auto run = [&] { batch.whole.launch(model_); };
      run();  // a row of padding: no state changes, but the kernel is loaded
      batch.graph = device.capture(run);
    }
  }

  DeviceModel<Device, Element>& model_;
  Logits logits_;
  StepMemory<Device> memory_;
  std::map<std::pair<std::int64_t, bool>, std::unique_ptr<Batch>> batches_;
};

}  // namespace jrt_lm
