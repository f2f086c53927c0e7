// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <jrt/execution/cuda.cuh>
#include <jrt/numeric.hpp>
#include <jrt/policy/rotary.hpp>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "jrt_lm/cublas_product.hpp"
#include "jrt_lm/cuda_kernels.cuh"
#include "jrt_lm/cuda_streams.cuh"
#include "jrt_lm/device_array.hpp"
#include "jrt_lm/early_start.cuh"
#include "jrt_lm/language_model.hpp"
#include "jrt_lm/model_weights.hpp"
#include "jrt_lm/nccl_ranks.cuh"
#include "jrt_lm/rotated_product.cuh"
#include "jrt_lm/skinny_product.cuh"
#include "jrt_lm/step_kernel.hpp"
#include "jrt_lm/tiled_products.cuh"

namespace jrt_lm {

/// A GPU: device memory, matrix products of cuBLASLt, and the kernels between them, all on one stream of its own.
class CudaDevice {
 public:
  using Execution = jrt::Cuda;

  explicit CudaDevice(const ModelOptions& options)
      : rank_(on_device(options.rank)),
        stream_(make_stream()),
        execution_(stream_.get()),
        scratch_(*this, 64 << 20),
        product_(scratch_.data(), 64 << 20) {
    check_cuda(execution_.error(), "device");
  }

  template <class T>
  using Array = DeviceArray<CudaDevice, T>;

  /// Ranks are GPUs 0, 1, …, connected by NCCL.
  void use() const { check_cuda(cudaSetDevice(rank_), "device"); }
  static std::unique_ptr<RankGroup> make_group(int ranks) { return make_nccl_group(ranks); }
  std::unique_ptr<RankLink<Execution>> link(RankGroup& group, int rank) { return make_nccl_link(group, rank); }
  void await(RankLink<Execution>& link) { await_nccl(link, execution_); }

  void* allocate(std::size_t bytes) {
    void* memory = nullptr;
    if (bytes > 0) {
      check_cuda(cudaMalloc(&memory, bytes), "memory");
      allocated_bytes_ += static_cast<std::int64_t>(bytes);
      check_cuda(cudaMemsetAsync(memory, 0, bytes, stream_.get()), "clearing memory");
    }
    return memory;
  }
  void release(void* memory, std::size_t bytes) {
    allocated_bytes_ -= static_cast<std::int64_t>(bytes);
    cudaFree(memory);  // waits for the work that uses it
  }
  void clear(void* memory, std::size_t bytes) {
    check_cuda(cudaMemsetAsync(memory, 0, bytes, stream_.get()), "clearing memory");
  }
  void upload(void* to, const void* from, std::size_t bytes) {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_.get()), "transfer to the device");
    synchronize();  // `from` may go
  }
  void download(void* to, const void* from, std::size_t bytes) {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_.get()), "transfer from the device");
    synchronize();
  }

  /// Short prompts are replayed from graphs: their launches would take longer than their work.
  static constexpr bool replays_prompts = true;
  /// Work that can be launched again and again.
  using Graph = CudaGraph;
  template <class T>
  using HostArray = TransferArray<T>;
  /// A place in the stream: what was enqueued before it.
  using Event = CudaEvent;

  [[nodiscard]] const Execution& execution() const { return execution_; }
  [[nodiscard]] std::int64_t allocated_bytes() const { return allocated_bytes_; }
  [[nodiscard]] static std::string name() {
    int device = 0;
    cudaDeviceProp properties{};
    check_cuda(cudaGetDevice(&device), "device");
    check_cuda(cudaGetDeviceProperties(&properties, device), "properties of the device");
    return properties.name;
  }
  void synchronize() const { check_cuda(cudaStreamSynchronize(stream_.get()), "work on the device"); }

  /// What `function` enqueues, without running it.
  template <class Function>
  Graph capture(const Function& function) {
    return captured(stream_.get(), function);
  }
  static Event make_event() { return jrt_lm::make_event(); }
  void record(const Event& event) { check_cuda(cudaEventRecord(event.get(), stream_.get()), "event"); }
  static void await(const Event& event) { check_cuda(cudaEventSynchronize(event.get()), "work on the device"); }
  /// To and from a HostArray, in the stream.
  template <class T>
  void send(const T* from, T* to, std::int64_t count) {
    check_cuda(
        cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyHostToDevice, stream_.get()),
        "transfer to the device");
  }
  template <class T>
  void fetch(const T* from, T* to, std::int64_t count) {
    check_cuda(
        cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyDeviceToHost, stream_.get()),
        "transfer from the device");
  }

  /// `function(i, execution)` for calls that do not need one another, several at the same time.
  static constexpr bool runs_side_by_side = true;
  template <class Function>
  void side_by_side(std::int64_t count, const Function& function) {
    sides_.run(stream_.get(), count, function);
  }
  void launch(const Graph& graph) { check_cuda(cudaGraphLaunch(graph.get(), stream_.get()), "graph launch"); }

  /// A whole decode step.
  void launch_step(const StepKernel& kernel, const StepInputs& inputs, int blocks) {
    kernel.launch(inputs, blocks, stream_.get());
  }

  // -- the same functions as of CpuDevice ------------------------------------------------------------------------------

  template <class E, class Out>
  void multiply(const Projection<CudaDevice, E, Out>& by, const E* x, std::int64_t x_columns, std::int64_t rows, Out* y,
                std::int64_t y_columns) {
    product(by, x, x_columns, rows, y, y_columns, false);
  }
  template <class E, class Out>
  void multiply_add(const Projection<CudaDevice, E, Out>& by, const E* x, std::int64_t x_columns, std::int64_t rows, Out* y,
                    std::int64_t y_columns) {
    if constexpr (has_skinny_product<E>) {
      if (is_skinny(rows, by.in, by.out)) {
        skinny_product<SkinnyOutput::adds>(by, SkinnyActivations<E>{x, static_cast<int>(x_columns)}, rows, by.out, y,
                                           y_columns);
        return;
      }
    }
    product(by, x, x_columns, rows, y, y_columns, true);
  }

  template <class E, class Sum>
  void embed(const std::int32_t* tokens, std::int64_t rows, const E* table, std::int64_t width, Sum* out) {
    embed_kernel<<<blocks(rows), row_threads, 0, stream_.get()>>>(tokens, table, width, out);
    check_launch();
  }

  template <class E, class Sum>
  void rms_norm(const Norm<Sum>& norm, const Sum* x, const std::int32_t* list, std::int64_t rows, std::int64_t width,
                E* out) {
    check_packets<E>("width", width);
    rms_norm_kernel<<<blocks(rows), row_threads, 0, stream_.get()>>>(x, list, width, norm.weight,
                                                                     static_cast<Sum>(norm.epsilon), out);
    check_launch();
  }

  // Tiled products do the work of norms: x weight and its rows' squares come from the product before ("prepared").
  static constexpr bool prepares_norms = true;
  static std::int64_t most_square_parts(std::int64_t width) { return TiledProducts::most_square_parts(width); }
  /// Whether a product of so many outputs can take what is prepared: the copy engine takes rows of whole 16 bytes.
  static bool takes_prepared(std::int64_t outputs) { return outputs % 8 == 0; }
  /// Whether an addition to the residual stream can prepare it.
  template <class E, class Sum>
  [[nodiscard]] bool can_prepare(const Projection<CudaDevice, E, Sum>& by, std::int64_t rows) const {
    return has_tiled_product<E> && tiled_.takes(rows, by.in, by.out);
  }
  template <class E, class Sum>
  void embed_prepared(const std::int32_t* tokens, std::int64_t rows, const E* table, std::int64_t width, Sum* out,
                      const Sum* norm_weight, E* normed, Sum* squares) {
    check_cuda(launch_early(embed_prepared_kernel<E, Sum>, rows, row_threads, 0, stream_.get(), tokens, table, width, out,
                            norm_weight, normed, squares),
               "launch");
  }
  /// x += y Wᵀ + b; with weights of a norm, x weight in `normed`, and squares. Returns their parts.
  template <class E, class Sum>
  std::int64_t multiply_add_prepared(const Projection<CudaDevice, E, Sum>& by, const E* y, std::int64_t y_columns,
                                     std::int64_t rows, Sum* x, const Sum* norm_weight, E* normed, Sum* squares) {
    if constexpr (has_tiled_product<E>) {
      TiledOperands of = tiled_operands(by, y, y_columns, rows, by.out);
      of.stream = x;
      of.stream_columns = by.out;
      of.y = norm_weight == nullptr ? nullptr : normed;
      of.y_columns = by.out;
      of.norm_weight = norm_weight;
      of.new_squares = squares;
      return tiled_.add(of, stream_.get());
    }
    return 0;
  }
  template <class E, class Sum>
  void multiply_prepared(const Projection<CudaDevice, E, E>& by, const Norm<Sum>& norm, const E* normed, std::int64_t rows,
                         E* y) {
    if constexpr (has_tiled_product<E>) {
      tiled_.store(tiled_normed(by, norm, normed, rows, y, by.out), stream_.get());
    }
  }

  template <class E, class Sum, class Out>
  void multiply_normed(const Projection<CudaDevice, E, Out>& by, const Norm<Sum>& norm, const Sum* x, std::int64_t rows,
                       E* normed, Out* y, std::int64_t y_columns) {
    if constexpr (has_skinny_norm<E>) {
      if (is_normed_skinny(rows, by.in, by.out)) {
        skinny_product<SkinnyOutput::stores>(by, normalised<E>(norm, x, by.in), rows, by.out, y, y_columns);
        return;
      }
    }
    if constexpr (has_tiled_product<E> && std::is_same_v<Out, E>) {
      if (norm.squares != nullptr) {
        multiply_prepared(by, norm, normed, rows, y);
        return;
      }
    }
    rms_norm(norm, x, nullptr, rows, by.in, normed);
    multiply(by, normed, by.in, rows, y, y_columns);
  }

  template <class E, class Sum>
  std::int64_t multiply_normed_gated(const Projection<CudaDevice, E, E>& by, const Norm<Sum>& norm, const Sum* x,
                                     std::int64_t rows, E* normed, E* y) {
    const std::int64_t hidden = by.out / 2;
    if constexpr (has_skinny_norm<E>) {
      if (is_normed_skinny(rows, by.in, hidden)) {
        skinny_product<SkinnyOutput::gates>(by, normalised<E>(norm, x, by.in), rows, hidden, y, hidden);
        return hidden;
      }
    }
    if constexpr (has_tiled_product<E>) {
      if (norm.squares != nullptr) {
        tiled_.gate(tiled_normed(by, norm, normed, rows, y, hidden), stream_.get());
        return hidden;
      }
    }
    multiply_normed(by, norm, x, rows, normed, y, by.out);
    swiglu(y, rows, hidden);
    return by.out;
  }

  template <class E, int d, class Sum>
  void multiply_normed_rotated(const Projection<CudaDevice, E, E>& by, const Norm<Sum>& norm, const Sum* x,
                               std::int64_t rows, E* normed, E* y, const jrt::RotaryHalves<d>& rotary,
                               const std::int32_t* positions, std::int64_t heads) {
    if constexpr (has_skinny_norm<E> && RotationBehind<E, d>::supported) {
      if (is_normed_skinny(rows, by.in, by.out / 2)) {
        const RotationBehind<E, d> behind{rotary, positions, static_cast<int>(rows), static_cast<int>(heads)};
        skinny_product<SkinnyOutput::passes>(by, normalised<E>(norm, x, by.in), rows, by.out / 2, y, by.out, behind);
        return;
      }
    }
    if constexpr (has_tiled_product<E> && d == 64) {
      if (norm.squares != nullptr) {
        TiledOperands of = tiled_normed(by, norm, normed, rows, y, by.out);
        of.rotary = &rotary;
        of.positions = positions;
        of.turned_heads = heads;
        tiled_.rotate(of, stream_.get());
        return;
      }
    }
    multiply_normed(by, norm, x, rows, normed, y, by.out);
    rotate(rotary, positions, rows, y, by.out, heads);
  }

  template <class E, int d>
  void rotate(const jrt::RotaryHalves<d>& rotary, const std::int32_t* positions, std::int64_t rows, E* x,
              std::int64_t columns, std::int64_t heads) {
    check_cuda(launch_early(rotate_kernel<E, d>, rows, row_threads, 0, stream_.get(), rotary, positions, x, columns, heads),
               "launch");
  }

  template <class E>
  void zero_columns(E* x, std::int64_t columns, std::int64_t count, std::int64_t rows) {
    const auto bytes = [](std::int64_t numbers) { return static_cast<std::size_t>(numbers) * sizeof(E); };
    check_cuda(cudaMemset2DAsync(x, bytes(columns), 0, bytes(count), static_cast<std::size_t>(rows), stream_.get()),
               "zeros");
  }

  template <class Sum>
  void argmax(const Sum* x, std::int64_t rows, std::int64_t columns, std::int64_t count, std::int32_t* out) {
    check_cuda(launch_early(argmax_kernel<Sum>, rows, argmax_threads, 0, stream_.get(), x, columns, count, out), "launch");
  }

  void advance(const std::int32_t* likeliest, std::int32_t* tokens, std::int32_t* positions, std::int32_t* history,
               std::int64_t rows) {
    constexpr int threads = 128;
    advance_kernel<<<blocks((rows + threads - 1) / threads), threads, 0, stream_.get()>>>(likeliest, tokens, positions,
                                                                                          history, static_cast<int>(rows));
    check_launch();
  }

  /// Of each sequence: how many of its tokens count (`accepted_tokens`).
  void accept(const std::int32_t* tokens, const std::int32_t* likeliest, std::int64_t sequences, std::int64_t count,
              std::int32_t* accepted) {
    constexpr int threads = 128;
    accept_kernel<<<blocks((sequences + threads - 1) / threads), threads, 0, stream_.get()>>>(
        tokens, likeliest, static_cast<int>(sequences), static_cast<int>(count), accepted);
    check_launch();
  }

 private:
  static unsigned blocks(std::int64_t count) { return static_cast<unsigned>(count); }
  static void check_launch() { check_cuda(cudaGetLastError(), "launch"); }
  template <class T>
  static void check_packets(const char* what, std::int64_t count) {
    if (count % Packet<T>::size != 0) {
      throw std::runtime_error(std::string("the ") + what + " is " + std::to_string(count) +
                               ", but must be a multiple of " + std::to_string(Packet<T>::size) + " on a GPU");
    }
  }

  template <class E>
  void swiglu(E* x, std::int64_t rows, std::int64_t hidden) {
    check_packets<E>("hidden width", hidden);
    constexpr int threads = 256;
    const std::int64_t packets = hidden / Packet<E>::size;
    swiglu_kernel<<<blocks((rows * packets + threads - 1) / threads), threads, 0, stream_.get()>>>(
        x, rows * packets, static_cast<int>(packets));
    check_launch();
  }

  template <class E>
  static SkinnyResidual<E> normalised(const Norm<float>& norm, const float* x, std::int64_t width) {
    return SkinnyResidual<E>{x, static_cast<int>(width), norm.weight, static_cast<float>(norm.epsilon)};
  }
  template <SkinnyOutput what, class E, class Input, class Out, class Behind = NothingBehind>
  void skinny_product(const Projection<CudaDevice, E, Out>& by, const Input& input, std::int64_t rows, std::int64_t outputs,
                      Out* y, std::int64_t y_columns, const Behind& behind = {}) {
    check_cuda(launch_skinny_product<what>(input, rows, by.in, by.weight.data(), by.bias.data(), outputs, y, y_columns,
                                           stream_.get(), behind),
               "launch");
  }

  template <class T>
  static constexpr cudaDataType_t data_type() {
    if constexpr (std::is_same_v<T, double>) {
      return CUDA_R_64F;
    } else if constexpr (std::is_same_v<T, float>) {
      return CUDA_R_32F;
    } else {
      return std::is_same_v<T, jrt::Half> ? CUDA_R_16F : CUDA_R_16BF;
    }
  }

  template <class E, class Out>
  void product(const Projection<CudaDevice, E, Out>& by, const E* x, std::int64_t x_columns, std::int64_t rows, Out* y,
               std::int64_t y_columns, bool adds) {
    ProductShape shape;
    shape.rows = rows;
    shape.in = by.in;
    shape.out = by.out;
    shape.x_columns = x_columns;
    shape.y_columns = y_columns;
    shape.input = data_type<E>();
    shape.output = data_type<Out>();
    shape.has_bias = by.bias.size() != 0;
    shape.adds = adds;
    product_.run(shape, x, by.weight.data(), by.bias.data(), y, stream_.get());
  }

  static int on_device(int rank) {
    check_cuda(cudaSetDevice(rank), ("GPU " + std::to_string(rank)).c_str());
    return rank;
  }

  int rank_;
  CudaStream stream_;
  Execution execution_;
  std::int64_t allocated_bytes_ = 0;
  Array<std::byte> scratch_;
  CublasProduct product_;
  TiledProducts tiled_{};
  SideStreams sides_;
};

}  // namespace jrt_lm
