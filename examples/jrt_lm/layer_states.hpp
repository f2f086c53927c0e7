// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <jrt/mixer/gated_convolution.hpp>
#include <jrt/mixer/window_attention.hpp>
#include <jrt/prefill.hpp>
#include <jrt/state.hpp>
#include <jrt/state_exchange.hpp>
#include <jrt/state_operations.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "jrt_lm/activations.hpp"
#include "jrt_lm/model_config.hpp"
#include "jrt_lm/prefill_plan.hpp"

namespace jrt_lm {

/// The mixers of a model whose kernels are compiled for these dimensions.
template <class ElementT, int FeatureDim, int HeadDim, int LeftWindow, int KernelWidth>
struct MixersOf {
  using Element = ElementT;
  static constexpr int feature_dim = FeatureDim;
  static constexpr int head_dim = HeadDim;
  using Convolution = jrt::GatedConvolution<Element, KernelWidth>;
  using Linear = jrt::PrefixLinearAttention<Element, FeatureDim, HeadDim>;
  using Window = jrt::SlidingWindowAttention<Element, HeadDim, LeftWindow>;
  static constexpr KernelShape shape{FeatureDim, HeadDim, LeftWindow, KernelWidth};
};

/// The states of all layers. A slot has those of one sequence, layer behind layer, so that the pool of a layer is a view of
/// all slots with their distance as its stride: what jrt::Stack does for a list of mixers that is known at compile time.
template <class Device, class Mixers>
class LayerStates {
 public:
  LayerStates(Device& device, const ModelConfig& config, std::int64_t slots) : config_(&config), slots_(slots) {
    if (slots < 1) {
      throw std::invalid_argument("a model needs at least 1 slot, but has " + std::to_string(slots));
    }
    for (std::size_t i = 0; i < config.layers.size(); ++i) {
      offsets_.push_back(slot_bytes_);
      visit(i, [&]<class Config>() {
        const std::int64_t bytes = jrt::StateFormatOf<Config>::slot_bytes(heads_of(i));
        slot_bytes_ += (bytes + 127) / 128 * 128;
      });
    }
    // One more, for states that are being loaded: a file that turns out wrong leaves a sequence as it was.
    memory_ = {device, (slots + 1) * slot_bytes_};
  }

  [[nodiscard]] std::int64_t slots() const { return slots_; }
  [[nodiscard]] std::int64_t slot_bytes() const { return slot_bytes_; }

  /// States of layer `i`, which has the mixer `Config`.
  template <class Config>
  [[nodiscard]] jrt::StateSlots<jrt::StateFormatOf<Config>> slots_of(std::size_t i, const std::int32_t* slots) const {
    using Format = jrt::StateFormatOf<Config>;
    using Scalar = typename Format::Scalar;
    auto* const data = reinterpret_cast<Scalar*>(memory_.data() + offsets_[i]);
    return {{data, slots_ + 1, heads_of(i), slot_bytes_ / static_cast<std::int64_t>(sizeof(Scalar))}, slots};
  }

  void copy(Device& device, std::int64_t from, std::int64_t to) const {
    if (from == to) {
      return;
    }
    for_layers([&]<class Config>(std::size_t i) {
      require(jrt::copy_states(one_slot<Config>(i, from), one_slot<Config>(i, to), 1, device.execution()));
    });
  }

  /// A header, then each layer as jrt::save_states writes it.
  [[nodiscard]] std::vector<std::byte> save(Device& device, std::int64_t slot, std::int64_t tokens_read) const {
    std::vector<std::byte> bytes(static_cast<std::size_t>(saved_bytes()));
    SavedHeader header;
    header.layers = std::ssize(config_->layers);
    header.tokens_read = tokens_read;
    std::memcpy(bytes.data(), &header, sizeof header);
    std::span<std::byte> rest = std::span(bytes).subspan(sizeof header);
    for_layers([&]<class Config>(std::size_t i) {
      const auto part = layer_bytes<Config>(i);
      require(jrt::save_states(one_slot<Config>(i, slot), 1, rest.first(part), device.execution()));
      rest = rest.subspan(part);
    });
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
    for_layers([&]<class Config>(std::size_t i) {
      const auto part = layer_bytes<Config>(i);
      require(jrt::load_states(rest.first(part), one_slot<Config>(i, slots_), 1, device.execution()));
      if constexpr (jrt::WindowConfig<Config>) {
        check_window(i, rest.first(part), header.tokens_read);
      }
      rest = rest.subspan(part);
    });
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
  void check_window(std::size_t i, std::span<const std::byte> part, std::int64_t tokens_read) const {
    using Format = jrt::StateFormatOf<typename Mixers::Window>;
    const std::size_t at = sizeof(jrt::SavedStatesHeader) + Format::count_offset * sizeof(typename Format::Scalar);
    std::int64_t seen = 0;
    std::memcpy(&seen, part.data() + at, sizeof seen);
    if (seen != tokens_read) {
      throw std::invalid_argument("a saved sequence has read " + std::to_string(tokens_read) + " tokens, but its layer " +
                                  std::to_string(i) + " has seen " + std::to_string(seen));
    }
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

  template <class Function>
  void visit(std::size_t i, const Function& function) const {
    switch (config_->layers[i]) {
      case MixerKind::convolution:
        function.template operator()<typename Mixers::Convolution>();
        break;
      case MixerKind::linear:
        function.template operator()<typename Mixers::Linear>();
        break;
      case MixerKind::window:
        function.template operator()<typename Mixers::Window>();
        break;
    }
  }

  template <class Function>
  void for_layers(const Function& function) const {
    for (std::size_t i = 0; i < config_->layers.size(); ++i) {
      visit(i, [&]<class Config>() { function.template operator()<Config>(i); });
    }
  }

  /// A pool that begins at `slot`, for operations without an array of slots.
  template <class Config>
  [[nodiscard]] jrt::StateSlots<jrt::StateFormatOf<Config>> one_slot(std::size_t i, std::int64_t slot) const {
    auto states = slots_of<Config>(i, nullptr);
    states.pool.data += slot * states.pool.slot_stride;
    states.pool.slots = 1;
    return states;
  }

  template <class Config>
  [[nodiscard]] std::size_t layer_bytes(std::size_t i) const {
    return static_cast<std::size_t>(jrt::saved_states_bytes<jrt::StateFormatOf<Config>>(1, heads_of(i)));
  }

  [[nodiscard]] std::int64_t saved_bytes() const {
    std::size_t bytes = sizeof(SavedHeader);
    for_layers([&]<class Config>(std::size_t i) { bytes += layer_bytes<Config>(i); });
    return static_cast<std::int64_t>(bytes);
  }

  const ModelConfig* config_;
  std::int64_t slots_;
  std::int64_t slot_bytes_ = 0;
  std::vector<std::int64_t> offsets_;
  typename Device::template Array<std::byte> memory_{};
};

}  // namespace jrt_lm
