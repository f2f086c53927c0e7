// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <jrt/decode.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <jrt/prefill.hpp>
#include <jrt/state.hpp>
#include <jrt/state_exchange.hpp>
#include <jrt/state_operations.hpp>
#include <memory>
#include <span>

#include "jrt_lm/mixers.hpp"
#include "jrt_lm/require.hpp"

namespace jrt_lm {

template <class Args, class Element>
void set_tensors(Args& args, const ConvolutionTensors<Element>& tensors) {
  args.input = tensors.input;
  args.gate = tensors.gate;
  args.output = tensors.output;
  args.weight = tensors.weight;
  args.bias = tensors.bias;
}
template <class Args, class Element>
void set_tensors(Args& args, const LinearTensors<Element>& tensors) {
  args.query = tensors.query;
  args.key = tensors.key;
  args.value = tensors.value;
  args.output = tensors.output;
  if constexpr (requires { args.key_encoder; }) {
    args.key_encoder = tensors.key_encoder;
    args.value_encoder = tensors.value_encoder;
  }
}
template <class Args, class Element>
void set_tensors(Args& args, const WindowTensors<Element>& tensors) {
  args.query = tensors.query;
  args.key = tensors.key;
  args.value = tensors.value;
  args.output = tensors.output;
  args.scale = tensors.scale;
}

/// A step or a prompt of a mixer in one kernel with the projection that makes its inputs, where there is one
/// (convolved_product.cuh).
template <class Config, class Execution>
struct ProjectedStep {
  template <class... Arguments>
  static bool run(const Arguments&... /*arguments*/) {
    return false;
  }
};

/// A mixer of the library.
template <class Config, class Execution, class Tensors>
class CompiledMixer final : public Mixer<Execution, Tensors> {
 public:
  [[nodiscard]] std::int64_t slot_bytes(std::int64_t heads) const override { return Format::slot_bytes(heads); }
  [[nodiscard]] std::size_t saved_bytes(std::int64_t heads) const override {
    return static_cast<std::size_t>(jrt::saved_states_bytes<Format>(1, heads));
  }
  void copy(const LayerSlots& from, const LayerSlots& to, const Execution& on) const override {
    require(jrt::copy_states(states(from), states(to), 1, on));
  }
  void save(const LayerSlots& from, std::span<std::byte> to, const Execution& on) const override {
    require(jrt::save_states(states(from), 1, to, on));
  }
  void load(std::span<const std::byte> from, const LayerSlots& to, const Execution& on) const override {
    require(jrt::load_states(from, states(to), 1, on));
  }
  [[nodiscard]] bool counts_tokens() const override { return jrt::WindowConfig<Config>; }
  [[nodiscard]] std::int64_t tokens_seen([[maybe_unused]] std::span<const std::byte> saved) const override {
    std::int64_t seen = 0;
    if constexpr (jrt::WindowConfig<Config>) {
      const std::size_t at = sizeof(jrt::SavedStatesHeader) + Format::count_offset * sizeof(Scalar);
      std::memcpy(&seen, saved.data() + at, sizeof seen);
    }
    return seen;
  }

  [[nodiscard]] std::int64_t staged_bytes(std::int64_t heads) const override {
    return heads * Staging::row_elements * static_cast<std::int64_t>(sizeof(typename Config::Element));
  }
  void commit(const MixerCall& call, const std::int32_t* accepted, const Execution& on) const override {
    jrt::CommitArgs<Config> args;
    args.staging = staging(call);
    args.accepted_tokens = accepted;
    args.source = states(call.states);
    require(jrt::commit(args, call.workspace(jrt::commit_workspace_bytes(args, on)), on));
  }

  void run(const Tensors& tensors, const MixerCall& call, const Execution& on) const override {
    if (call.staging.data != nullptr) {
      jrt::StagedStepArgs<Config> args;
      set_tensors(args, tensors);
      args.state = states(call.states);
      args.staging = staging(call);
      require(jrt::staged_step(args, call.workspace(jrt::staged_workspace_bytes(args, on)), on));
    } else if (call.is_step) {
      jrt::DecodeArgs<Config> args;
      set_tensors(args, tensors);
      args.source = states(call.states);
      require(jrt::decode_step(args, call.workspace(jrt::decode_workspace_bytes(args, on)), on));
    } else {
      jrt::PrefillArgs<Config> args;
      set_tensors(args, tensors);
      args.sequences = call.sequences;
      args.initial_state = states(call.states);
      args.final_state = args.initial_state;
      args.has_initial_state = call.continues;
      require(jrt::prefill(args, call.workspace(jrt::prefill_workspace_bytes(args, on)), on));
    }
  }

  [[nodiscard]] bool run_projected(const StepProjection<typename Tensors::Element>& projection, const Tensors& tensors,
                                   const MixerCall& call, const Execution& on) const override {
    return ProjectedStep<Config, Execution>::run(projection, tensors, states(call.states), staging(call), call, on);
  }

  void run_piece(const Tensors& tensors, const MixerCall& call, const jrt::ContextLayout& whole, RankLink<Execution>& link,
                 const Execution& on) const override {
    jrt::ContextLayout layout = whole;
    if constexpr (!jrt::AttentionConfig<Config>) {
      layout.encoder_tokens = nullptr;
    }
    jrt::ContextPlan<Config> plan;
    if constexpr (jrt::AttentionConfig<Config>) {
      require(jrt::ContextPlan<Config>::make(layout, link.rank(), on, plan, call.states.heads));
    } else {
      require(jrt::ContextPlan<Config>::make(layout, link.rank(), on, plan));
    }
    jrt::ContextPrefillArgs<Config> args;
    set_tensors(args.local, tensors);
    args.local.initial_state = states(call.states);
    args.local.final_state = args.local.initial_state;
    args.plan = &plan;
    const std::size_t index_bytes = (plan.index_bytes() + 255) / 256 * 256;
    const std::size_t bytes = jrt::prefill_workspace_bytes(args, on);
    const jrt::Workspace workspace = call.workspace(index_bytes + bytes);
    require(plan.place(workspace.data, on));
    require(jrt::prefill(args, link, {static_cast<std::byte*>(workspace.data) + index_bytes, bytes}, on));
  }

 private:
  using Format = jrt::StateFormatOf<Config>;
  using Scalar = typename Format::Scalar;
  using Staging = jrt::StagingView<Config>;

  static Staging staging(const MixerCall& call) {
    return {reinterpret_cast<typename Config::Element*>(call.staging.data), call.staging.sequences, call.staging.tokens,
            call.states.heads};
  }
  static jrt::StateSlots<Format> states(const LayerSlots& layer) {
    return {{reinterpret_cast<Scalar*>(layer.data), layer.count, layer.heads,
             layer.slot_stride / static_cast<std::int64_t>(sizeof(Scalar))},
            layer.slots};
  }
};

template <class Config, class Execution, class Tensors>
std::unique_ptr<const Mixer<Execution, Tensors>> make_mixer() {
  return std::make_unique<CompiledMixer<Config, Execution, Tensors>>();
}

}  // namespace jrt_lm
