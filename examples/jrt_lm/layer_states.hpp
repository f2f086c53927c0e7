// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <jrt/workspace.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "jrt_lm/mixers.hpp"
#include "jrt_lm/model_config.hpp"
#include "jrt_lm/prefill_plan.hpp"

namespace jrt_lm {

/// The states of all layers. A slot has those of one sequence, layer behind layer, so that the pool of a layer is a view of
/// all slots with their distance as its stride: what jrt::Stack does for a list of mixers that is known at compile time.
template <class Device, class Element>
class LayerStates {
 public:
  using Mixers = jrt_lm::Mixers<Device, Element>;

  LayerStates(Device& device, const ModelConfig& config, const Mixers& mixers, std::int64_t slots)
      : config_(&config), mixers_(&mixers), slots_(slots) {
    if (slots < 1) {
      throw std::invalid_argument("a model needs at least 1 slot, but has " + std::to_string(slots));
    }
    for (std::size_t i = 0; i < config.layers.size(); ++i) {
      offsets_.push_back(slot_bytes_);
      slot_bytes_ += (mixer(i).slot_bytes(heads_of(i)) + 127) / 128 * 128;
    }
    // One more, for states that are being loaded: a file that turns out wrong leaves a sequence as it was.
    memory_ = {device, (slots + 1) * slot_bytes_};
  }

  [[nodiscard]] std::int64_t slots() const { return slots_; }
  [[nodiscard]] std::int64_t slot_bytes() const { return slot_bytes_; }

  /// States of layer `i`.
  [[nodiscard]] LayerSlots slots_of(std::size_t i, const std::int32_t* slots) const {
    return {memory_.data() + offsets_[i], slots_ + 1, slot_bytes_, heads_of(i), slots};
  }

  /// Of what a staged step keeps of one token in layer `i`.
  [[nodiscard]] std::int64_t staged_bytes(std::size_t i) const { return mixer(i).staged_bytes(heads_of(i)); }

  /// Takes the first `accepted[b]` tokens that layer `i` has staged of each sequence into the states in `slots`.
  void commit(std::size_t i, const LayerStaging& staging, const std::int32_t* slots, const std::int32_t* accepted,
              const std::function<jrt::Workspace(std::size_t)>& workspace, const typename Device::Execution& on) const {
    MixerCall call;
    call.staging = staging;
    call.states = slots_of(i, slots);
    call.workspace = workspace;
    mixer(i).commit(call, accepted, on);
  }

  void copy(Device& device, std::int64_t from, std::int64_t to) const {
    if (from == to) {
      return;
    }
    for (std::size_t i = 0; i < offsets_.size(); ++i) {
      mixer(i).copy(one_slot(i, from), one_slot(i, to), device.execution());
    }
  }

  /// A slot's states of no token.
  void clear(Device& device, std::int64_t slot) const {
    device.clear(memory_.data() + slot * slot_bytes_, static_cast<std::size_t>(slot_bytes_));
  }

  /// A header, then each layer as jrt::save_states writes it.
  [[nodiscard]] std::vector<std::byte> save(Device& device, std::int64_t slot, std::int64_t tokens_read) const {
    std::vector<std::byte> bytes(static_cast<std::size_t>(saved_bytes()));
    SavedHeader header;
    header.layers = std::ssize(config_->layers);
    header.tokens_read = tokens_read;
    std::memcpy(bytes.data(), &header, sizeof header);
    std::span<std::byte> rest = std::span(bytes).subspan(sizeof header);
    for (std::size_t i = 0; i < offsets_.size(); ++i) {
      const std::size_t part = mixer(i).saved_bytes(heads_of(i));
      mixer(i).save(one_slot(i, slot), rest.first(part), device.execution());
      rest = rest.subspan(part);
    }
    device.synchronize();
    return bytes;
  }

  /// The tokens that the loaded sequence has read.
  std::int64_t load(Device& device, std::span<const std::byte> bytes, std::int64_t slot) const {
    if (std::ssize(bytes) != saved_bytes()) {
      throw std::invalid_argument("a saved sequence has " + std::to_string(bytes.size()) + " bytes, but this model's has " +
                                  std::to_string(saved_bytes()));
    }
    SavedHeader header;
    std::memcpy(&header, bytes.data(), sizeof header);
    if (std::memcmp(header.magic, SavedHeader{}.magic, sizeof header.magic) != 0) {
      throw std::invalid_argument("a saved sequence does not begin with the header of one");
    }
    if (header.tokens_read < 0 || header.tokens_read > max_tokens) {
      throw std::invalid_argument("a saved sequence has read " + std::to_string(header.tokens_read) +
                                  " tokens, but may have read from 0 to " + std::to_string(max_tokens));
    }
    if (header.layers != std::ssize(config_->layers)) {
      throw std::invalid_argument("a saved sequence has " + std::to_string(header.layers) + " layers, but the model has " +
                                  std::to_string(config_->layers.size()));
    }
    std::span<const std::byte> rest = bytes.subspan(sizeof header);
    for (std::size_t i = 0; i < offsets_.size(); ++i) {
      const std::size_t part = mixer(i).saved_bytes(heads_of(i));
      mixer(i).load(rest.first(part), one_slot(i, slots_), device.execution());
      check_count(i, rest.first(part), header.tokens_read);
      rest = rest.subspan(part);
    }
    copy(device, slots_, slot);
    device.synchronize();
    return header.tokens_read;
  }

 private:
  struct SavedHeader {
    char magic[8] = {'J', 'R', 'T', 'S', 'E', 'Q', '0', '1'};
    std::int64_t layers = 0;
    std::int64_t tokens_read = 0;
  };

  /// A window counts what it has seen, which is all that the sequence has read: positions and the keys in its ring go by
  /// that number. `part` has been loaded, so that all its heads have the same.
  void check_count(std::size_t i, std::span<const std::byte> part, std::int64_t tokens_read) const {
    if (!mixer(i).counts_tokens()) {
      return;
    }
    const std::int64_t seen = mixer(i).tokens_seen(part);
    if (seen != tokens_read) {
      throw std::invalid_argument("a saved sequence has read " + std::to_string(tokens_read) + " tokens, but its layer " +
                                  std::to_string(i) + " has seen " + std::to_string(seen));
    }
  }

  [[nodiscard]] const MixerStates<typename Device::Execution>& mixer(std::size_t i) const {
    return mixers_->states_of(config_->layers[i]);
  }

  [[nodiscard]] std::int64_t heads_of(std::size_t i) const {
    switch (config_->layers[i]) {
      case MixerKind::convolution:
        return config_->channels;
      case MixerKind::linear:
        return config_->heads;
      default:
        return config_->window_kv_heads;
    }
  }

  [[nodiscard]] LayerSlots one_slot(std::size_t i, std::int64_t slot) const { return slots_of(i, nullptr).only(slot); }

  [[nodiscard]] std::int64_t saved_bytes() const {
    std::size_t bytes = sizeof(SavedHeader);
    for (std::size_t i = 0; i < offsets_.size(); ++i) {
      bytes += mixer(i).saved_bytes(heads_of(i));
    }
    return static_cast<std::int64_t>(bytes);
  }

  const ModelConfig* config_;
  const Mixers* mixers_;
  std::int64_t slots_;
  std::int64_t slot_bytes_ = 0;
  std::vector<std::int64_t> offsets_;
  typename Device::template Array<std::byte> memory_{};
};

}  // namespace jrt_lm
