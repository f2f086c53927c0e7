// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <jrt/cuda/device_steps.cuh>
#include <jrt/policy/rotary.hpp>
#include <type_traits>

#include "jrt_lm/step_block.cuh"

namespace jrt_lm {

/// What one thread adds to a product, of one row and one output, without what comes from other stages.
template <class Shape, StageKind kind>
struct StepAddends {
  float bias[tile_parts(kind)] = {};
};
template <class Shape>
struct StepAddends<Shape, StageKind::adds> {
  float bias[1] = {};
  float norm = 0;
};
template <class Shape>
struct StepAddends<Shape, StageKind::rotates> {
  float bias[2] = {};
  jrt::Rotation<float> turn{1, 0};  // for what is not rotated: the same numbers
  std::int32_t rotates = 0;
};
template <class Shape>
struct StepAddends<Shape, StageKind::convolves> {
  float bias[2] = {};
  jrt::DeviceChannel<typename Shape::Convolution> channel;
};

/// Addends lie in shared memory word by word.
template <class Addends>
struct AddendWords {
  static_assert(std::is_trivially_copyable_v<Addends> && sizeof(Addends) % 4 == 0);
  static constexpr int count = static_cast<int>(sizeof(Addends) / 4);
  std::uint32_t words[count];
};

/// Whose addends are loaded ahead.
[[nodiscard]] JRT_DETAIL_HD constexpr bool is_prepared(StageKind kind) {
  return is_product(kind) && kind != StageKind::logits;
}

/// A thread's output of a round of tiles.
template <class Shape, StageKind kind>
struct StepItem {
  static constexpr int tiles = Shape::tiles_at_once(kind);
  static constexpr int of_tile = Shape::rows * tile_outputs;
  static constexpr int count = tiles * of_tile;
  static_assert(count <= step_consumers);
  int unit;
  int row;
  int within;

  __device__ explicit StepItem(int number)
      : unit(number / of_tile), row(number / tile_outputs % Shape::rows), within(number % tile_outputs) {}
};

/// Three warps load what is added to products, a round or two ahead: what would be some dependent loads, each of them as
/// long as a stage's share of the weights.
template <class Shape>
class StepPreparer : StepBlock<Shape> {
  using Block = StepBlock<Shape>;
  using E = typename Shape::E;

 public:
  using Block::Block;

  /// `warp`: of the preparing ones.
  __device__ __forceinline__ void run(int warp) {
    clear(warp);
    for (int s = 0; s < this->in_.stage_count; ++s) {
      const Stage& stage = this->stages_[s];
      switch (stage.kind) {
        case StageKind::stores:
          prepare<StageKind::stores>(stage, warp);
          break;
        case StageKind::convolves:
          prepare<StageKind::convolves>(stage, warp);
          break;
        case StageKind::rotates:
          prepare<StageKind::rotates>(stage, warp);
          break;
        case StageKind::gates:
          prepare<StageKind::gates>(stage, warp);
          break;
        case StageKind::adds:
          prepare<StageKind::adds>(stage, warp);
          break;
        default:
          break;
      }
    }
  }

 private:
  /// Sets all bits of the exchange of the next step.
  __device__ void clear(int warp) const {
    auto* const words = reinterpret_cast<uint4*>(this->other_exchange_);
    const auto count = static_cast<int>(this->in_.exchange_bytes / static_cast<std::int64_t>(sizeof(uint4)));
    for (int i = (this->block_ * step_preparers + warp) * 32 + this->lane(); i < count;
         i += this->blocks_ * step_preparers * 32) {
      words[i] = {~0U, ~0U, ~0U, ~0U};
    }
  }

  template <StageKind kind>
  __device__ void prepare(const Stage& stage, int warp) {
    using namespace jrt::detail::cuda;
    using Item = StepItem<Shape, kind>;
    using Addends = StepAddends<Shape, kind>;
    using Words = AddendWords<Addends>;
    static_assert(Words::count * Item::count <= Block::Prepared::slot_words(Shape::rows));
    for (int first = stage.first_tile; first < stage.tiles; first += Item::tiles * this->blocks_) {
      barrier_wait(this->taken(this->place_.slot), this->place_.round ^ 1);
      const int of_tile = this->in_.rows * tile_outputs;
      std::uint32_t* const to = this->prepared_.words(this->place_.slot, this->in_.rows);
      for (int i = warp * 32 + this->lane(); i < Item::tiles * of_tile; i += step_preparers * 32) {
        int unit = 0;
        for (; i >= (unit + 1) * of_tile; ++unit) {
        }
        const int tile = first + unit * this->blocks_;
        if (tile < stage.tiles) {
          Addends addends;
          load<kind>(stage, tile, Item(unit * Item::of_tile + i - unit * of_tile), addends);
          const auto words = __builtin_bit_cast(Words, addends);
#pragma unroll
          for (int w = 0; w < Words::count; ++w) {
            to[w * Item::tiles * of_tile + i] = words.words[w];
          }
        }
      }
      barrier_arrive(this->prepared(this->place_.slot));
      this->place_.advance(prepared_slots);
    }
  }

  template <StageKind kind>
  __device__ void load(const Stage& stage, int tile, const StepItem<Shape, kind>& item,
                       StepAddends<Shape, kind>& addends) const {
    const int output = tile_row(stage, tile, 0) + item.within;
    if (stage.bias != nullptr) {
#pragma unroll
      for (int part = 0; part < tile_parts(kind); ++part) {
        const int number = tile_row(stage, tile, part) + item.within;
        if constexpr (kind == StageKind::adds) {
          addends.bias[part] = static_cast<const float*>(stage.bias)[number];
        } else {
          addends.bias[part] = jrt::convert<float>(static_cast<const E*>(stage.bias)[number]);
        }
      }
    }
    if constexpr (kind == StageKind::adds) {
      addends.norm = stage.norm[output];
    } else if constexpr (kind == StageKind::rotates) {
      constexpr int d = Block::Window::head_dim;
      if (output < (this->in_.heads + this->in_.window_kv_heads) * d) {
        addends.turn = this->parameters_.rotary.template rotation<float>(this->prepared_.positions[item.row], output % d);
        addends.rotates = 1;
      }
    } else if constexpr (kind == StageKind::convolves) {
      using Convolution = typename Block::Convolution;
      const auto states = this->template states<Convolution>(stage, this->in_.channels);
      // Of several tokens the last one's channel keeps the inputs.
      if (!Shape::several || (stage.staged == nullptr && this->prepared_.before[item.row] == this->in_.step_tokens - 1)) {
        auto args = this->template filters<jrt::DecodeArgs<Convolution>>(stage);
        args.source = states;
        addends.channel.load(args, item.row, output, this->in_.channels);
      } else {
        auto args = this->template filters<jrt::StagedStepArgs<Convolution>>(stage);
        args.state = states;
        addends.channel.load(args, item.row, output, this->in_.channels);
      }
    }
  }
};

}  // namespace jrt_lm
