// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <jrt/cuda/device_steps.cuh>
#include <jrt/detail/cuda/core/sm90/instructions.cuh>
#include <jrt/detail/cuda/core/sm90/target.cuh>
#include <jrt/policy/rotary.hpp>
#include <memory>
#include <stdexcept>
#include <string>

#include "jrt_lm/skinny_product.cuh"
#include "jrt_lm/step_kernel.hpp"

/// A decode step of a whole model in one kernel for Hopper: one block on each multiprocessor, all of them there at the same
/// time. Blocks work through a list of stages and wait for one another between two of them; weights do not wait: a warp of
/// its own keeps copying the block's share of them, stage after stage, into a ring in shared memory.
///
///     copying warp     | W0 W0 W0 W1 W1 W2 W2 W2 W3 …          ahead by as much as the ring holds
///     ring             [ piece | piece | piece | … ]           a piece: 8 rows of W, 512 columns
///     16 warps         | wait · x · W0 | wait · x · W1 | …     each takes 32 columns of every piece: mma.m16n8k16
///
/// What a stage needs beside x (biases, norm weights, filters, states, angles) is loaded before the wait. Sums have one
/// order, which depends on no other row: a sequence gives the same in any batch.
///
/// How blocks wait: each adds one to a number in global memory when it has written its part of a stage (with release, after
/// a barrier of its threads), and one thread of each reads it (with acquire) until all have, before a barrier lets the
/// others go on. The number only grows within a step; the last block to leave sets it to 0 for the next one.
namespace jrt_lm {

inline constexpr int step_warps = 16;
inline constexpr int step_consumers = 32 * step_warps;
inline constexpr int step_threads =
    step_consumers + 128;                       ///< registers are given out by four warps; one of the last copies
inline constexpr int consumer_registers = 112;  ///< with the next, no more than the kernel starts with
inline constexpr int copier_registers = 32;
inline constexpr int step_at_once = 4;  ///< tiles whose sums are in registers together
inline constexpr int step_barrier = 1;  ///< of the 16 warps
inline constexpr int max_ring_slots = 32;
/// Rows of a piece lie 64 bytes off in the banks of shared memory, so that lanes of two rows do not meet.
inline constexpr int piece_stride = piece_columns * 2 + 64;
inline constexpr int piece_bytes = tile_outputs * piece_stride;

template <int d>
struct StepParameters {
  StepInputs in;
  jrt::RotaryHalves<d> rotary;
  std::int32_t work_offset = 0;  ///< in shared memory, behind barriers and stages
  std::int32_t ring_offset = 0;
  std::int32_t ring_slots = 0;
};

/// Sums of the warps, and what else a stage has in shared memory.
struct StepSums {
  float partial[step_at_once][step_warps][step_rows][tile_outputs];
  float squares[step_warps][step_rows];
};
struct StepCandidate {
  float logit;
  std::int32_t token;
};

__device__ inline std::uint32_t arrived(const std::uint32_t* arrivals) {
  std::uint32_t count;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(arrivals) : "memory");
  return count;
}
__device__ inline void arrive(std::uint32_t* arrivals) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" : : "l"(arrivals) : "memory");
}
/// Copies to shared memory, past the caches' long-lived part: each weight is read once in a step.
__device__ inline void copy_row(std::uint32_t to, const void* from, int bytes, std::uint32_t barrier,
                                std::uint64_t policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
               :
               : "r"(to), "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
               : "memory");
}
__device__ inline uint4 load_shared(std::uint32_t from) {
  uint4 words;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(from)
               : "memory");
  return words;
}

/// Slots of the ring in turn.
struct RingPlace {
  int slot = 0;
  std::uint32_t round = 0;
  __device__ void advance(int slots) {
    if (++slot == slots) {
      slot = 0;
      round ^= 1;
    }
  }
};

/// What both kinds of warps know.
template <class Convolution, class Linear, class Window>
class StepBlock {
 public:
  using E = typename Linear::Element;
  using Parameters = StepParameters<Window::head_dim>;
  using LinearStep = jrt::DeviceStep<Linear>;
  using WindowStep = jrt::DeviceStep<Window>;
  using LinearPart = jrt::BlockPart<LinearStep::threads>;
  using WindowPart = jrt::BlockPart<step_consumers>;
  /// Of the residual stream, and twice as many of what is added to it: 16 heads wide, as the published models are.
  static constexpr int normed_pieces = pieces_of(16 * Window::head_dim);
  static constexpr int linear_parts = step_consumers / LinearStep::threads;
  static constexpr std::size_t linear_bytes = (LinearStep::shared_bytes + 127) / 128 * 128;

  __device__ StepBlock(const Parameters& parameters, std::byte* shared)
      : parameters_(parameters),
        in_(parameters.in),
        shared_(shared),
        stages_(reinterpret_cast<const Stage*>(shared + 2 * max_ring_slots * sizeof(std::uint64_t))),
        barriers_(jrt::detail::cuda::shared_address(shared)),
        ring_(jrt::detail::cuda::shared_address(shared) + static_cast<std::uint32_t>(parameters.ring_offset)),
        block_(static_cast<int>(blockIdx.x)),
        blocks_(static_cast<int>(gridDim.x)) {}

 protected:
  [[nodiscard]] __device__ std::uint32_t full(int slot) const { return barriers_ + 8U * static_cast<unsigned>(slot); }
  [[nodiscard]] __device__ std::uint32_t empty(int slot) const { return full(slot + max_ring_slots); }
  [[nodiscard]] __device__ std::uint32_t piece(int slot) const {
    return ring_ + static_cast<unsigned>(slot) * static_cast<unsigned>(piece_bytes);
  }
  [[nodiscard]] static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }

  template <class Config>
  [[nodiscard]] __device__ jrt::StateSlots<jrt::StateFormatOf<Config>> states(const Stage& stage, int heads) const {
    using Scalar = typename jrt::StateFormatOf<Config>::Scalar;
    return {{static_cast<Scalar*>(stage.state), in_.slot_count, heads,
             in_.slot_stride / static_cast<std::int64_t>(sizeof(Scalar))},
            in_.slots};
  }
  template <class T>
  [[nodiscard]] __device__ jrt::TensorView<T> view(T* data, int columns, int heads, int dim) const {
    return {data, in_.rows, 1, heads, dim, columns, columns, dim};
  }
  [[nodiscard]] __device__ LinearStep linear_step(const Stage& stage) const {
    constexpr int d = Linear::FeatureMap::input_dim;
    const auto* const x = static_cast<const E*>(stage.x);
    jrt::DecodeArgs<Linear> args;
    args.query = view(x, stage.x_columns, in_.heads, d);
    args.key = view(x + in_.heads * d, stage.x_columns, in_.heads, d);
    args.value = view(x + 2 * in_.heads * d, stage.x_columns, in_.heads, Linear::value_dim);
    args.output = view(static_cast<E*>(stage.y), stage.y_columns, in_.heads, Linear::value_dim);
    args.source = states<Linear>(stage, in_.heads);
    return LinearStep(args);
  }
  [[nodiscard]] __device__ WindowStep window_step(const Stage& stage) const {
    constexpr int d = Window::head_dim;
    const auto* const x = static_cast<const E*>(stage.x);
    const int kv_heads = in_.window_kv_heads;
    jrt::DecodeArgs<Window> args;
    args.query = view(x, stage.x_columns, in_.heads, d);
    args.key = view(x + in_.heads * d, stage.x_columns, kv_heads, d);
    args.value = view(x + (in_.heads + kv_heads) * d, stage.x_columns, kv_heads, d);
    args.output = view(static_cast<E*>(stage.y), stage.y_columns, in_.heads, d);
    args.source = states<Window>(stage, kv_heads);
    args.scale = in_.window_scale;
    return WindowStep(args);
  }
  [[nodiscard]] __device__ jrt::DecodeArgs<Convolution> convolution(const Stage& stage) const {
    jrt::DecodeArgs<Convolution> args;
    args.weight = static_cast<const E*>(stage.filter);
    args.bias = static_cast<const E*>(stage.filter_bias);
    args.source = states<Convolution>(stage, in_.channels);
    return args;
  }

  const Parameters& parameters_;
  const StepInputs& in_;
  std::byte* shared_;
  const Stage* stages_;
  std::uint32_t barriers_;
  std::uint32_t ring_;
  RingPlace place_;
  int block_;
  int blocks_;
};

/// The copying warp: all weights of the block in the order in which they are multiplied; and, far ahead of the stages that
/// read them, lines of the small arrays and states for the L2 cache.
template <class Convolution, class Linear, class Window>
class StepCopier : StepBlock<Convolution, Linear, Window> {
  using Block = StepBlock<Convolution, Linear, Window>;

 public:
  using Block::Block;

  __device__ __forceinline__ void run() {
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy_));
    for (int s = 0; s < this->in_.stage_count; ++s) {
      const Stage& stage = this->stages_[s];
      if (is_product(stage.kind)) {
        if (stage.norm != nullptr && s % this->blocks_ == this->block_) {
          jrt::prefetch_lines(stage.norm, std::int64_t{4} * stage.in, this->lane(), 32);
        }
        for (int tile = first_tile(stage, this->block_, this->blocks_); tile < stage.tiles; tile += this->blocks_) {
          if (stage.kind != StageKind::logits) {
            prefetch(stage, tile);
          }
          for (int part = 0; part < tile_parts(stage.kind); ++part) {
            copy(stage, tile_row(stage, tile, part));
          }
        }
      } else if (stage.kind == StageKind::linear) {
        prefetch_states(this->linear_step(stage));
      } else if (stage.kind == StageKind::window) {
        prefetch_states(this->window_step(stage));
      }
    }
  }

 private:
  __device__ void copy(const Stage& stage, int row) {
    using namespace jrt::detail::cuda;
    const auto* const from =
        static_cast<const typename Block::E*>(stage.weight) + (std::int64_t{row} + this->lane() % tile_outputs) * stage.in;
    for (int column = 0; column < stage.in; column += piece_columns) {
      const int bytes = 2 * (stage.in - column < piece_columns ? stage.in - column : piece_columns);
      barrier_wait(this->empty(this->place_.slot), this->place_.round ^ 1);
      barrier_expect(this->full(this->place_.slot), tile_outputs * bytes);
      __syncwarp();
      if (this->lane() < tile_outputs) {
        copy_row(this->piece(this->place_.slot) + static_cast<unsigned>(this->lane() * piece_stride), from + column, bytes,
                 this->full(this->place_.slot), policy_);
      }
      this->place_.advance(this->parameters_.ring_slots);
    }
  }

  __device__ void prefetch(const Stage& stage, int tile) const {
    const int lane = this->lane();
    const auto line = [](const void* from) { jrt::prefetch_lines(from, 1, 0, 1); };
    const int part = lane % 2;
    if (lane < tile_parts(stage.kind) && stage.bias != nullptr) {
      const std::int64_t number = tile_row(stage, tile, part);
      line(static_cast<const std::byte*>(stage.bias) + number * (stage.kind == StageKind::adds ? 4 : 2));
    }
    if (stage.kind == StageKind::convolves) {
      const int channel = tile * tile_outputs;
      const auto args = this->convolution(stage);
      if (lane == 2) {
        line(args.weight + channel * Convolution::kernel_width);
      } else if (lane == 3 && args.bias != nullptr) {
        line(args.bias + channel);
      } else if (const int row = lane - step_rows; row >= 0 && row < this->in_.rows && args.source.has_slot(row)) {
        line(args.source.pool.head(args.source.slot(row), channel));
      }
    }
  }
  template <class Step>
  __device__ void prefetch_states(const Step& step) const {
    for (unsigned item = static_cast<unsigned>(this->block_); item < step.items();
         item += static_cast<unsigned>(this->blocks_)) {
      step.prefetch(item, this->lane(), 32);
    }
  }

  std::uint64_t policy_ = 0;
};

/// The 16 warps that do everything else.
template <class Convolution, class Linear, class Window>
class StepConsumer : StepBlock<Convolution, Linear, Window> {
  using Block = StepBlock<Convolution, Linear, Window>;
  using E = typename Block::E;

 public:
  __device__ StepConsumer(const typename Block::Parameters& parameters, std::byte* shared)
      : Block(parameters, shared),
        work_(shared + parameters.work_offset),
        sums_(*reinterpret_cast<StepSums*>(shared + parameters.work_offset)) {}

  __device__ __forceinline__ void run() {
    for (stage_ = 0; stage_ < this->in_.stage_count; ++stage_) {
      // Otherwise what follows from it for each kind of stage would stay in registers through all of them.
      thread_ = static_cast<int>(jrt::detail::cuda::computed_afresh(threadIdx.x));
      const Stage& stage = this->stages_[stage_];
      switch (stage.kind) {
        case StageKind::embed:
          embed(stage);
          break;
        case StageKind::stores:
          normed_product<StageKind::stores>(stage);
          break;
        case StageKind::convolves:
          normed_product<StageKind::convolves>(stage);
          break;
        case StageKind::rotates:
          normed_product<StageKind::rotates>(stage);
          break;
        case StageKind::gates:
          normed_product<StageKind::gates>(stage);
          break;
        case StageKind::adds:
          added_product(stage);
          break;
        case StageKind::linear:
          attend_linearly(stage);
          break;
        case StageKind::window:
          attend_in_window(stage);
          break;
        case StageKind::logits:
          normed_product<StageKind::logits>(stage);
          break;
        case StageKind::likeliest:
          find_likeliest(stage);
          break;
      }
      sync();
      if (stage_ + 1 < this->in_.stage_count && thread() == 0) {
        arrive(this->in_.arrivals);
      }
    }
    leave();
  }

 private:
  [[nodiscard]] __device__ int thread() const { return thread_; }
  [[nodiscard]] __device__ int warp() const { return thread_ / 32; }
  [[nodiscard]] __device__ int lane() const { return thread_ % 32; }
  static __device__ void sync() { jrt::detail::cuda::named_barrier(step_barrier, step_consumers); }

  /// Waits until all blocks have written what belongs to the stages before this one.
  __device__ void await_stages() const {
    if (thread() == 0) {
      const auto all = static_cast<std::uint32_t>(stage_ * this->blocks_);
      while (arrived(this->in_.arrivals) < all) {
      }
    }
    sync();
  }
  /// The last block to leave makes the next step start from 0: nobody waits any more.
  __device__ void leave() const {
    if (thread() == 0) {
      __threadfence();
      if (atomicAdd(this->in_.arrivals + 1, 1U) == static_cast<unsigned>(this->blocks_) - 1) {
        this->in_.arrivals[0] = 0;
        this->in_.arrivals[1] = 0;
      }
    }
  }

  __device__ void embed(const Stage& stage) const {
    for (int row = this->block_; row < this->in_.rows; row += this->blocks_) {
      const E* const from = static_cast<const E*>(stage.weight) + std::int64_t{this->in_.tokens[row]} * stage.in;
      auto* const to = static_cast<float*>(stage.y) + row * stage.y_columns;
      for (int c = thread(); c < stage.in; c += step_consumers) {
        to[c] = jrt::convert<float>(from[c]);
      }
    }
  }

  // -- products ----------------------------------------------------------------------------------------------------------

  template <StageKind kind>
  __device__ void normed_product(const Stage& stage) {
    product<kind, true, Block::normed_pieces>(stage);
  }
  __device__ void added_product(const Stage& stage) {
    if (stage.in <= Block::normed_pieces * piece_columns) {
      product<StageKind::adds, false, Block::normed_pieces>(stage);
    } else {
      product<StageKind::adds, false, 2 * Block::normed_pieces>(stage);
    }
  }

  /// What one thread adds to a product, of one row and one output: loaded before the product is there.
  template <StageKind kind>
  struct Epilogue {
    static constexpr int parts = tile_parts(kind);
    bool active = false;
    bool rotates = false;
    int row = 0;
    int output = 0;  // of part 0, in W
    float bias[parts] = {};
    float residual = 0;
    jrt::Rotation<float> turn{};
    jrt::DeviceChannel<Convolution> channel;
  };

  /// What does not depend on this step's other stages.
  template <StageKind kind>
  __device__ void prepare(const Stage& stage, int first, Epilogue<kind>& own) const {
    constexpr int parts = tile_parts(kind);
    const int unit = thread() / (step_rows * tile_outputs);
    const int within = thread() % tile_outputs;
    const int tile = first + unit * this->blocks_;
    own.row = thread() / tile_outputs % step_rows;
    own.active = unit < step_at_once / parts && own.row < this->in_.rows && tile < stage.tiles;
    if (!own.active) {
      return;
    }
    own.output = tile_row(stage, tile, 0) + within;
    if (stage.bias != nullptr) {
#pragma unroll
      for (int part = 0; part < parts; ++part) {
        const int number = tile_row(stage, tile, part) + within;
        if constexpr (kind == StageKind::adds || kind == StageKind::logits) {
          own.bias[part] = static_cast<const float*>(stage.bias)[number];
        } else {
          own.bias[part] = jrt::convert<float>(static_cast<const E*>(stage.bias)[number]);
        }
      }
    }
    if constexpr (kind == StageKind::rotates) {
      own.rotates = own.output < (this->in_.heads + this->in_.window_kv_heads) * Window::head_dim;
      if (own.rotates) {
        own.turn =
            this->parameters_.rotary.template rotation<float>(this->in_.positions[own.row], own.output % Window::head_dim);
      }
    } else if constexpr (kind == StageKind::convolves) {
      own.channel.load(this->convolution(stage), own.row, own.output, this->in_.channels);
    }
  }

  template <StageKind kind>
  __device__ void load_residual(const Stage& stage, Epilogue<kind>& own) const {
    if constexpr (kind == StageKind::adds) {
      if (own.active) {
        own.residual = __ldcg(static_cast<const float*>(stage.y) + own.row * stage.y_columns + own.output);
      }
    }
  }

  template <StageKind kind>
  __device__ void finish(const Stage& stage, Epilogue<kind>& own) {
    constexpr int parts = tile_parts(kind);
    if (!own.active) {
      return;
    }
    const int unit = thread() / (step_rows * tile_outputs);
    const int within = thread() % tile_outputs;
    float factor = 1;
    if constexpr (kind != StageKind::adds) {
      float all = 0;
#pragma unroll
      for (int w = 0; w < step_warps; ++w) {
        all += sums_.squares[w][own.row];
      }
      factor = 1 / sqrtf(all / static_cast<float>(stage.in) + this->in_.norm_epsilon);
    }
    float total[parts] = {};
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int w = 0; w < step_warps; ++w) {
        total[part] += sums_.partial[unit * parts + part][w][own.row][within];
      }
      total[part] = total[part] * factor + own.bias[part];
    }
    const int at = own.row * stage.y_columns + own.output;
    if constexpr (kind == StageKind::adds) {
      static_cast<float*>(stage.y)[at] = own.residual + total[0];
    } else if constexpr (kind == StageKind::logits) {
      static_cast<float*>(stage.y)[at] = total[0];
      if (own.output < this->in_.vocabulary) {
        const StepCandidate candidate =
            isfinite(total[0]) ? StepCandidate{total[0], own.output} : StepCandidate{INFINITY, no_token};
        best_ = likelier(best_, candidate);
      }
    } else {
      E* const y = static_cast<E*>(stage.y) + at;
      if constexpr (kind == StageKind::stores) {
        *y = jrt::convert<E>(total[0]);
      } else if constexpr (kind == StageKind::gates) {
        *y = jrt::convert<E>(total[0] * total[1] / (1 + expf(-total[1])));
      } else if constexpr (kind == StageKind::convolves) {
        *y = own.channel.next(jrt::convert<E>(total[0]), jrt::convert<E>(total[1]));
      } else {
        E low = jrt::convert<E>(total[0]);
        E high = jrt::convert<E>(total[1]);
        if (own.rotates) {
          const auto a = jrt::convert<float>(low);
          const auto b = jrt::convert<float>(high);
          low = jrt::convert<E>(a * own.turn.cosine - b * own.turn.sine);
          high = jrt::convert<E>(a * own.turn.sine + b * own.turn.cosine);
        }
        y[0] = low;
        y[Window::head_dim / 2] = high;
      }
    }
  }

  /// This lane's numbers of x: rows g and g + 8, 8 columns of each piece.
  template <bool normed, int P>
  __device__ void load_rows(const Stage& stage, const float (&scales)[P][8], uint4 (&x)[P][2]) {
    const int g = lane() / 4;
    float squares[2] = {};
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int column = own_column(p);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        x[p][half] = {};
        const int row = g + 8 * half;
        if (column < stage.in && row < this->in_.rows) {
          const int at = row * stage.x_columns + column;
          if constexpr (normed) {
            Packet<E> packet;
#pragma unroll
            for (int quarter = 0; quarter < 2; ++quarter) {
              const float4 four =
                  __ldcg(reinterpret_cast<const float4*>(static_cast<const float*>(stage.x) + at) + quarter);
              const float numbers[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
              for (int c = 0; c < 4; ++c) {
                squares[half] += numbers[c] * numbers[c];
                packet.values[4 * quarter + c] = jrt::convert<E>(numbers[c] * scales[p][4 * quarter + c]);
              }
            }
            x[p][half] = __builtin_bit_cast(uint4, packet);
          } else {
            x[p][half] = __ldcg(reinterpret_cast<const uint4*>(static_cast<const E*>(stage.x) + at));
          }
        }
      }
    }
    if constexpr (normed) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        squares[half] += __shfl_xor_sync(~0U, squares[half], 1);
        squares[half] += __shfl_xor_sync(~0U, squares[half], 2);
        if (lane() % 4 == 0) {
          sums_.squares[warp()][g + 8 * half] = squares[half];
        }
      }
    }
  }
  [[nodiscard]] __device__ int own_column(int p) const {
    return p * piece_columns + warp() * chunk_columns + lane() % 4 * 8;
  }

  /// sums += x Wᵀ over this warp's columns of the next tile in the ring. Low and high pairs have sums of their own where
  /// there are registers, so that fewer instructions wait for one another.
  template <int P, int chains>
  __device__ void multiply(int in, const uint4 (&x)[P][2], float (&sums)[chains][4]) {
    using namespace jrt::detail::cuda;
    constexpr int at_a_time = P < 4 ? P : 4;
    const auto offset = static_cast<unsigned>(lane() / 4 * piece_stride + warp() * chunk_columns * 2 + lane() % 4 * 16);
#pragma unroll
    for (int begin = 0; begin < P; begin += at_a_time) {
      uint4 w[at_a_time];
      const RingPlace first = this->place_;
#pragma unroll
      for (int i = 0; i < at_a_time; ++i) {
        if ((begin + i) * piece_columns < in) {
          barrier_wait(this->full(this->place_.slot), this->place_.round);
          if (own_column(begin + i) < in) {
            w[i] = load_shared(this->piece(this->place_.slot) + offset);
          } else {
            w[i] = {};
          }
          this->place_.advance(this->parameters_.ring_slots);
        }
      }
      RingPlace done = first;
#pragma unroll
      for (int i = 0; i < at_a_time; ++i) {
        if ((begin + i) * piece_columns < in) {
          const uint4(&rows)[2] = x[begin + i];
          const std::uint32_t low[4] = {rows[0].x, rows[1].x, rows[0].y, rows[1].y};
          const std::uint32_t high[4] = {rows[0].z, rows[1].z, rows[0].w, rows[1].w};
          multiply_fragments<E>(sums[0], low, w[i].x, w[i].y);
          multiply_fragments<E>(sums[chains - 1], high, w[i].z, w[i].w);
          barrier_arrive(this->empty(done.slot));
          done.advance(this->parameters_.ring_slots);
        }
      }
    }
  }

  template <StageKind kind, bool normed, int P>
  __device__ void product(const Stage& stage) {
    constexpr int parts = tile_parts(kind);
    constexpr int chains = P <= 4 ? 2 : 1;
    const int in = stage.in;
    const int step = step_at_once / parts * this->blocks_;
    const int g = lane() / 4;
    const int c = lane() % 4;
    float scales[P][8];
    if constexpr (normed) {
#pragma unroll
      for (int p = 0; p < P; ++p) {
        if (own_column(p) < in) {
#pragma unroll
          for (int quarter = 0; quarter < 2; ++quarter) {
            const float4 four = __ldg(reinterpret_cast<const float4*>(stage.norm + own_column(p)) + quarter);
            scales[p][4 * quarter] = four.x;
            scales[p][4 * quarter + 1] = four.y;
            scales[p][4 * quarter + 2] = four.z;
            scales[p][4 * quarter + 3] = four.w;
          }
        }
      }
    }
    int first = first_tile(stage, this->block_, this->blocks_);
    Epilogue<kind> own;
    prepare(stage, first, own);
    await_stages();
    load_residual(stage, own);
    uint4 x[P][2];
    load_rows<normed>(stage, scales, x);
    if constexpr (kind == StageKind::logits) {
      best_ = {-INFINITY, INT32_MAX};
    }
    while (first < stage.tiles) {
      float sums[step_at_once][chains][4] = {};
#pragma unroll
      for (int i = 0; i < step_at_once; ++i) {
        if (first + i / parts * this->blocks_ < stage.tiles) {
          multiply(in, x, sums[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < step_at_once; ++i) {
        if constexpr (chains == 2) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            sums[i][0][n] += sums[i][1][n];
          }
        }
        float(&rows)[step_rows][tile_outputs] = sums_.partial[i][warp()];
        if (g < this->in_.rows) {
          *reinterpret_cast<float2*>(&rows[g][2 * c]) = {sums[i][0][0], sums[i][0][1]};
        }
        if (g + 8 < this->in_.rows) {
          *reinterpret_cast<float2*>(&rows[g + 8][2 * c]) = {sums[i][0][2], sums[i][0][3]};
        }
      }
      sync();
      finish(stage, own);
      first += step;
      if (first < stage.tiles) {
        prepare(stage, first, own);
        load_residual(stage, own);
        sync();
      }
    }
    if constexpr (kind == StageKind::logits) {
      store_candidates();
    }
  }

  // -- the likeliest token -----------------------------------------------------------------------------------------------

  /// As `Likelier`; what is not finite comes before everything else.
  static __device__ StepCandidate likelier(const StepCandidate& a, const StepCandidate& b) {
    return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
  }
  template <int lanes>
  static __device__ StepCandidate likeliest_of(StepCandidate best) {
#pragma unroll
    for (int distance = 1; distance < lanes; distance *= 2) {
      const StepCandidate other{__shfl_xor_sync(~0U, best.logit, distance), __shfl_xor_sync(~0U, best.token, distance)};
      best = likelier(best, other);
    }
    return best;
  }
  /// Four of each row and block.
  __device__ void store_candidates() const {
    const StepCandidate best = likeliest_of<tile_outputs>(best_);
    const int unit = thread() / (step_rows * tile_outputs);
    const int row = thread() / tile_outputs % step_rows;
    if (thread() % tile_outputs == 0 && row < this->in_.rows) {
      candidates(row)[step_at_once * this->block_ + unit] = best;
    }
  }
  [[nodiscard]] __device__ StepCandidate* candidates(int row) const {
    return static_cast<StepCandidate*>(this->in_.candidates) + row * step_at_once * this->blocks_;
  }
  __device__ void find_likeliest(const Stage& stage) {
    await_stages();
    auto* const of_warps = reinterpret_cast<StepCandidate*>(work_);
    for (int row = this->block_; row < this->in_.rows; row += this->blocks_) {
      StepCandidate best{-INFINITY, INT32_MAX};
      for (int i = thread(); i < step_at_once * this->blocks_; i += step_consumers) {
        const float2 words = __ldcg(reinterpret_cast<const float2*>(candidates(row) + i));
        best = likelier(best, {words.x, __float_as_int(words.y)});
      }
      best = likeliest_of<32>(best);
      if (lane() == 0) {
        of_warps[warp()] = best;
      }
      sync();
      if (warp() == 0) {
        best = likeliest_of<step_warps>(of_warps[lane() % step_warps]);
        if (lane() == 0) {
          static_cast<std::int32_t*>(stage.y)[row] = best.token;
        }
      }
      sync();
    }
  }

  // -- mixers ------------------------------------------------------------------------------------------------------------

  __device__ void attend_linearly(const Stage& stage) const {
    await_stages();
    using Part = typename Block::LinearPart;
    const int number = thread() / Part::threads;
    if (number >= Block::linear_parts) {
      return;
    }
    const Part part{number * Part::threads, step_barrier + 1 + number};
    const auto step = this->linear_step(stage);
    for (auto item = static_cast<unsigned>(number * this->blocks_ + this->block_); item < step.items();
         item += static_cast<unsigned>(Block::linear_parts * this->blocks_)) {
      step.run(item, work_ + number * Block::linear_bytes, part);
    }
  }

  __device__ void attend_in_window(const Stage& stage) const {
    using Step = typename Block::WindowStep;
    using Part = typename Block::WindowPart;
    const Step step = this->window_step(stage);
    typename Step::template Item<Part> steps(step, work_, Part{0, step_barrier + 1});
    auto item = static_cast<unsigned>(this->block_);
    if (item < step.items()) {
      steps.begin(item);
    }
    await_stages();
    while (item < step.items()) {
      steps.end();
      item += static_cast<unsigned>(this->blocks_);
      if (item < step.items()) {
        steps.begin(item);
      }
    }
  }

  std::byte* work_;
  StepSums& sums_;
  int stage_ = 0;
  int thread_ = 0;
  StepCandidate best_{};
};

template <class Convolution, class Linear, class Window>
__global__ void __launch_bounds__(jrt::detail::cuda::hopper_threads<step_threads>, 1)
    step_kernel(const __grid_constant__ StepParameters<Window::head_dim> parameters) {
  if constexpr (jrt::detail::cuda::compiling_for_hopper) {
    using namespace jrt::detail::cuda;
    std::byte* const shared = hopper_shared_memory;
    const StepInputs& in = parameters.in;
    auto* const words = reinterpret_cast<uint4*>(shared + 2 * max_ring_slots * sizeof(std::uint64_t));
    constexpr int words_of_stage = sizeof(Stage) / sizeof(uint4);
    for (int i = static_cast<int>(threadIdx.x); i < in.stage_count * words_of_stage; i += step_threads) {
      words[i] = reinterpret_cast<const uint4*>(in.stages)[i];
    }
    if (threadIdx.x == 0) {
      for (int slot = 0; slot < max_ring_slots; ++slot) {
        barrier_init(shared_address(shared) + 8U * static_cast<unsigned>(slot), 1);
        barrier_init(shared_address(shared) + 8U * static_cast<unsigned>(slot + max_ring_slots), step_warps);
      }
      barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= step_consumers) {
      give_registers<copier_registers>();
      if (threadIdx.x < step_consumers + 32) {
        StepCopier<Convolution, Linear, Window>(parameters, shared).run();
      }
    } else {
      take_registers<consumer_registers>();
      StepConsumer<Convolution, Linear, Window>(parameters, shared).run();
    }
  }
}

template <class Convolution, class Linear, class Window>
class CompiledStepKernel final : public StepKernel {
  using Block = StepBlock<Convolution, Linear, Window>;
  static constexpr auto kernel = step_kernel<Convolution, Linear, Window>;

 public:
  explicit CompiledStepKernel(double rotary_base) : rotary_(rotary_base) {}

  [[nodiscard]] int blocks(const ModelConfig& config, std::int64_t rows, std::size_t stages) const override {
    int device = 0;
    int cooperates = 0;
    int shared_bytes = 0;
    int multiprocessors = 0;
    int resident = 0;
    const bool fits =
        has_step_sizes(config, rows, Block::normed_pieces) && cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&cooperates, cudaDevAttrCooperativeLaunch, device) == cudaSuccess && cooperates != 0 &&
        cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
        jrt::detail::cuda::kernel_exists<kernel, step_threads>() &&
        ring_slots(stages, window_group(config), shared_bytes) >= 4 * Block::normed_pieces &&
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) == cudaSuccess &&
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, step_threads,
                                                      static_cast<std::size_t>(shared_bytes)) == cudaSuccess &&
        resident > 0;
    if (!fits) {
      static_cast<void>(cudaGetLastError());
      return 0;
    }
    return multiprocessors;
  }

  void launch(const StepInputs& inputs, int blocks, void* stream) const override {
    int device = 0;
    int shared_bytes = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    const auto stages = static_cast<std::size_t>(inputs.stage_count);
    const std::int64_t group = inputs.heads / (inputs.window_kv_heads > 0 ? inputs.window_kv_heads : inputs.heads);
    StepParameters<Window::head_dim> parameters{inputs, rotary_};
    parameters.work_offset = static_cast<std::int32_t>(work_offset(stages));
    parameters.ring_offset = static_cast<std::int32_t>(work_offset(stages) + work_bytes(group));
    parameters.ring_slots = ring_slots(stages, group, shared_bytes);
    cudaLaunchAttribute cooperates{};
    cooperates.id = cudaLaunchAttributeCooperative;
    cooperates.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(step_threads);
    config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &cooperates;
    config.numAttrs = 1;
    check(cudaLaunchKernelEx(&config, kernel, parameters));
  }

 private:
  static void check(cudaError_t error) {
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string("CUDA, step kernel: ") + cudaGetErrorString(error));
    }
  }
  static constexpr std::size_t whole_lines(std::size_t bytes) { return (bytes + 127) / 128 * 128; }
  static std::int64_t window_group(const ModelConfig& config) { return config.heads / config.window_kv_heads; }

  /// Behind two barriers for each slot of the ring, and the stages.
  static std::size_t work_offset(std::size_t stages) {
    return whole_lines(2 * max_ring_slots * sizeof(std::uint64_t) + stages * sizeof(Stage));
  }
  static std::size_t work_bytes(std::int64_t group) {
    std::size_t most = sizeof(StepSums);
    for (const std::size_t bytes :
         {Block::linear_parts * Block::linear_bytes, Block::WindowStep::template shared_bytes<step_consumers>(group)}) {
      most = bytes > most ? bytes : most;
    }
    return whole_lines(most);
  }
  static int ring_slots(std::size_t stages, std::int64_t group, int shared_bytes) {
    const std::size_t used = work_offset(stages) + work_bytes(group);
    const auto all = static_cast<std::size_t>(shared_bytes);
    const std::size_t slots = all > used ? (all - used) / piece_bytes : 0;
    return static_cast<int>(slots < max_ring_slots ? slots : max_ring_slots);
  }

  jrt::RotaryHalves<Window::head_dim> rotary_;
};

template <class Convolution, class Linear, class Window>
std::unique_ptr<const StepKernel> make_step_kernel(double rotary_base) {
  if constexpr (jrt::DeviceStep<Linear>::supported && jrt::DeviceStep<Window>::supported) {
    return std::make_unique<CompiledStepKernel<Convolution, Linear, Window>>(rotary_base);
  } else {
    return nullptr;
  }
}

}  // namespace jrt_lm
