// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <jrt/numeric.hpp>
#include <jrt/state.hpp>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "jrt_lm/activations.hpp"
#include "jrt_lm/layers.hpp"
#include "jrt_lm/whole_step.hpp"

namespace jrt_lm {

/// Staged steps of so many tokens of so many sequences, and the commits behind them, in a form that the device can repeat.
template <class Device, class Element>
struct StagedBatch {
  template <class T>
  using Array = typename Device::template Array<T>;
  using HostArray = typename Device::template HostArray<std::int32_t>;

  std::int64_t sequences = 0;
  std::int64_t tokens = 0;         ///< of each
  Array<std::int32_t> inputs{};    ///< slots (sequences), tokens (rows), positions (rows)
  Array<std::int32_t> accepted{};  ///< (sequences)
  HostArray sent{};                ///< of `inputs`
  HostArray fetched{};             ///< likeliest tokens (rows)
  typename Device::Event was_sent{};
  typename Device::Event was_fetched{};
  Activations<Device, Element> activations{};
  LogitRows<Device, Element> logits{};
  Array<std::byte> staged{};
  std::vector<LayerStaging> layers{};  ///< parts of `staged`
  WholeStep<Device, Element> whole{};  ///< if it exists; else the step is separate kernels
  typename Device::Graph step{};
  typename Device::Graph commit{};

  [[nodiscard]] std::int64_t rows() const { return sequences * tokens; }
  [[nodiscard]] const std::int32_t* token_ids() const { return inputs.data() + sequences; }
};

/// Steps of a few tokens of each sequence, which leave the states as they are until some of the tokens are accepted:
/// prepared once for each number of sequences and tokens. All but the mixers sees rows, one for each token. Nothing waits
/// for the device but `commit_likeliest`, and that only for the tokens.
template <class Device, class Element>
class StagedSteps {
 public:
  using Batch = StagedBatch<Device, Element>;

  /// `separate_kernels`: even where one kernel does a whole step.
  StagedSteps(DeviceModel<Device, Element>& model, Layers<Device, Element>& layers, bool separate_kernels)
      : model_(model), layers_(layers), separate_kernels_(separate_kernels) {}

  /// Starts a step. `positions` are those of each sequence's first token.
  Batch& enqueue(std::span<const std::int32_t> tokens, std::span<const std::int32_t> slots,
                 std::span<const std::int32_t> positions) {
    const std::int64_t sequences = std::ssize(slots);
    Batch& batch = batch_of(sequences, std::ssize(tokens) / sequences);
    model_.device.await(batch.was_sent);  // the host's copy is free again
    std::int32_t* to = std::copy(slots.begin(), slots.end(), batch.sent.data());
    to = std::copy(tokens.begin(), tokens.end(), to);
    for (const std::int32_t first : positions) {
      for (std::int64_t t = 0; t < batch.tokens; ++t) {
        *to++ = first + static_cast<std::int32_t>(t);
      }
    }
    model_.device.send(batch.sent.data(), batch.inputs.data(), batch.inputs.size());
    model_.device.record(batch.was_sent);
    model_.device.launch(batch.step);
    return batch;
  }

  void commit(Batch& batch, std::span<const std::int32_t> accepted) {
    batch.accepted.upload(accepted);
    model_.device.launch(batch.commit);
  }

  /// Commits of each sequence the first token and those behind it that are the likeliest after the one before. Returns
  /// the likeliest after each token of the step.
  std::vector<std::int32_t> commit_likeliest(Batch& batch) {
    model_.device.accept(batch.token_ids(), batch.logits.likeliest.data(), batch.sequences, batch.tokens,
                         batch.accepted.data());
    model_.device.fetch(batch.logits.likeliest.data(), batch.fetched.data(), batch.rows());
    model_.device.record(batch.was_fetched);
    model_.device.launch(batch.commit);  // while the host looks at the tokens
    model_.device.await(batch.was_fetched);
    return {batch.fetched.data(), batch.fetched.data() + batch.rows()};
  }

 private:
  Batch& batch_of(std::int64_t sequences, std::int64_t tokens) {
    auto& batch = batches_[{sequences, tokens}];
    if (batch == nullptr) {
      auto prepared = std::make_unique<Batch>();
      prepare(*prepared, sequences, tokens);
      batch = std::move(prepared);
    }
    return *batch;
  }

  void prepare(Batch& batch, std::int64_t sequences, std::int64_t tokens) {
    Device& device = model_.device;
    batch.sequences = sequences;
    batch.tokens = tokens;
    batch.inputs = {device, sequences + 2 * batch.rows()};
    batch.accepted = {device, sequences};
    batch.sent = typename Batch::HostArray(batch.inputs.size());
    batch.fetched = typename Batch::HostArray(batch.rows());
    batch.was_sent = Device::make_event();
    batch.was_fetched = Device::make_event();
    batch.activations.reserve(device, model_.config, batch.rows(), 0);
    batch.logits.reserve(device, batch.rows(), model_.config);
    std::vector<std::int32_t> padding(static_cast<std::size_t>(batch.inputs.size()));
    std::fill_n(padding.begin(), sequences, jrt::skip_slot);
    batch.inputs.upload(padding);
    std::int64_t bytes = 0;
    std::vector<std::int64_t> offsets;
    for (std::size_t i = 0; i < model_.config.layers.size(); ++i) {
      offsets.push_back(bytes);
      bytes += (model_.states.staged_bytes(i) * batch.rows() + 255) / 256 * 256;
    }
    batch.staged = {device, bytes};
    for (const std::int64_t offset : offsets) {
      batch.layers.push_back({batch.staged.data() + offset, sequences, tokens});
    }
    if (!separate_kernels_) {
      batch.whole.prepare(model_, pass_of(batch), batch.logits);
    }
    const auto step = [this, &batch] { run_step(batch); };
    const auto commit = [this, &batch] { run_commit(batch); };
    step();  // rows of padding: it changes no state, but all memory is there afterwards, and all kernels are loaded
    commit();
    batch.step = device.capture(step);
    batch.commit = device.capture(commit);
  }

  static Pass pass_of(const Batch& batch) {
    Pass pass;
    pass.rows = batch.rows();
    pass.step_tokens = batch.tokens;
    pass.slots = batch.inputs.data();
    pass.tokens = batch.token_ids();
    pass.positions = pass.tokens + batch.rows();
    pass.staging = batch.layers;
    return pass;
  }

  void run_step(Batch& batch) {
    if (batch.whole.exists()) {
      batch.whole.launch(model_);
      batch.logits.rows = batch.rows();
      return;
    }
    const Pass pass = pass_of(batch);
    layers_.run(pass, batch.activations, {});
    batch.logits.rows = 0;
    layers_.finish(batch.activations, nullptr, pass.rows, batch.logits);
  }

  /// Layers commit side by side: none needs another, nor memory that another has at the same time.
  void run_commit(Batch& batch) {
    const auto workspace = [this, &batch](std::size_t bytes) {
      if (Device::runs_side_by_side && bytes > 0) {
        throw std::logic_error("the commit of a layer needs " + std::to_string(bytes) +
                               " bytes, but layers that commit side by side have no memory of their own");
      }
      return batch.activations.workspace(model_.device, bytes);
    };
    const auto commit_layer = [&](std::int64_t i, const typename Device::Execution& on) {
      const auto layer = static_cast<std::size_t>(i);
      model_.states.commit(layer, batch.layers[layer], batch.inputs.data(), batch.accepted.data(), workspace, on);
    };
    model_.device.side_by_side(std::ssize(batch.layers), commit_layer);
  }

  DeviceModel<Device, Element>& model_;
  Layers<Device, Element>& layers_;
  bool separate_kernels_;
  std::map<std::pair<std::int64_t, std::int64_t>, std::unique_ptr<Batch>> batches_;
};

}  // namespace jrt_lm
