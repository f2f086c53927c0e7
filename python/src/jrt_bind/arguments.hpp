// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <tvm/ffi/any.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "jrt/decode.hpp"
#include "jrt/numeric.hpp"
#include "jrt/policy/rotary.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"
#include "jrt_bind/tensors.hpp"

/// From DLPack tensors to the arguments of the library's operations. What only the binding can see is checked here: types,
/// devices, ranks, that rows are contiguous and arrays long enough. All else is checked by the operation itself.
namespace jrt::bind {

/// Reads the fields of an argument struct from positional arguments, in the order in which `fields` visits them. Each field
/// that is None stays as it is.
class Reader {
 public:
  Reader(const char* operation, const tvm::ffi::PackedArgs& arguments, DLDeviceType device_type)
      : operation_(operation), arguments_(arguments), device_type_(device_type) {}

  template <class T>
  void operator()(const char* name, TensorView<T>& view) {
    const auto tensor = next_tensor<T>(name);
    if (!tensor) {
      return;
    }
    const int rank = tensor->ndim();
    if (rank != 3 && rank != 4) {
      refuse("%s: argument '%s' has %d dimensions, but must have 4 (batch, tokens, heads, dim) or, packed, 3.", operation_,
             name, rank);
    }
    const int first = rank - 3;
    view.data = data_of<T>(*tensor);
    view.batch = rank == 4 ? tensor->size(0) : 1;
    view.tokens = tensor->size(first);
    view.heads = tensor->size(first + 1);
    view.dim = tensor->size(first + 2);
    if (tensor->numel() == 0) {  // frameworks give such tensors any strides
      view = view_bthd(view.data, {view.batch, view.tokens, view.heads, view.dim});
      return;
    }
    view.batch_stride = rank == 4 ? tensor->stride(0) : view.tokens * tensor->stride(first);
    view.token_stride = tensor->stride(first);
    view.head_stride = tensor->stride(first + 1);
    if (view.dim > 1 && tensor->stride(first + 2) != 1) {
      refuse("%s: argument '%s' has stride %lld in its last dimension, but must have 1.", operation_, name,
             static_cast<long long>(tensor->stride(first + 2)));
    }
    remember_memory(name, *tensor, !std::is_const_v<T>);
  }

  /// A pool, (slots, heads, head_elements), then the slots of its sequences.
  template <class Format>
  void operator()(const char* name, StateSlots<Format>& states) {
    using Scalar = typename Format::Scalar;
    if (const auto tensor = next_tensor<Scalar>(name)) {
      if (tensor->ndim() != 3 || tensor->size(2) != Format::head_elements ||
          (tensor->size(2) > 1 && tensor->stride(2) != 1) ||
          (tensor->size(1) > 1 && tensor->stride(1) != Format::head_elements)) {
        refuse("%s: argument '%s' must have the shape (slots, heads, %lld), contiguous but for the first dimension.",
               operation_, name, static_cast<long long>(Format::head_elements));
      }
      const std::int64_t heads = tensor->size(1);
      states.pool = {data_of<Scalar>(*tensor), tensor->size(0), heads,
                     tensor->size(0) > 1 ? tensor->stride(0) : heads * static_cast<std::int64_t>(Format::head_elements)};
    }
    array((std::string(name) + "_slots").c_str(), states.slots, 0);
  }

  void operator()(const char* /*name*/, Sequences& sequences) {
    array("cu_seqlens", sequences.cu_seqlens, 1);
    if (sequences.cu_seqlens != nullptr) {
      sequences.count = last_length_ - 1;
    }
    array("cu_encoder_seqlens", sequences.cu_encoder_seqlens, 1);
    array("seq_lens", sequences.seq_lens, 0);
    array("prefix_lens", sequences.prefix_lens, 0);
    array("left_pads", sequences.left_pads, 0);
    array("first_positions", sequences.first_positions, 0);
    (*this)("max_tokens", sequences.max_tokens);
  }

  /// One number for each sequence.
  template <class T>
  requires(std::is_same_v<T, const std::int32_t> || std::is_same_v<T, const std::uint8_t>) void operator()(const char* name,
                                                                                                           T*& numbers) {
    array(name, numbers, 0);
  }
  /// Parameters, contiguous; a matrix or a vector.
  template <class T>
  requires(Element<std::remove_const_t<T>>) void operator()(const char* name, T*& parameters) {
    if (const auto tensor = next_tensor<T>(name)) {
      check_contiguous(name, *tensor);
      parameters = data_of<T>(*tensor);
      parameters_.push_back({name, *tensor});
      remember_memory(name, *tensor, !std::is_const_v<T>);
    }
  }

  template <class Config>
  void operator()(const char* name, StagingView<Config>& staging) {
    using E = typename Config::Element;
    if (const auto tensor = next_tensor<E>(name)) {
      constexpr auto row = static_cast<std::int64_t>(jrt::detail::staged_row_elements<Config>);
      if (tensor->ndim() != 4 || !tensor->IsContiguous() || tensor->size(3) != row) {
        refuse("%s: argument '%s' must be contiguous with the shape (sequences, tokens, heads, %lld).", operation_, name,
               static_cast<long long>(row));
      }
      staging = {data_of<E>(*tensor), tensor->size(0), tensor->size(1), tensor->size(2)};
    }
  }

  template <class T>
  requires(std::is_arithmetic_v<T>) void operator()(const char* name, T& number) { read_number(name, number); }

  /// An array that a feature map points to.
  template <class T>
  void map_array(const char* name, const T*& data, std::initializer_list<std::int64_t> shape) {
    const auto tensor = next_tensor<T>(name);
    if (!tensor) {
      refuse("%s: argument '%s' is missing, but the feature map needs it, with shape %s.", operation_, name,
             name_of(shape).c_str());
    }
    if (tensor->ndim() != static_cast<int>(shape.size()) ||
        !std::equal(shape.begin(), shape.end(), tensor->shape().begin())) {
      const tvm::ffi::ShapeView actual = tensor->shape();
      refuse("%s: argument '%s' has shape %s, but must have %s.", operation_, name, name_of(actual).c_str(),
             name_of(shape).c_str());
    }
    check_contiguous(name, *tensor);
    data = data_of<const T>(*tensor);
  }

  /// The base of its frequencies, or the angle of each pair for each token in radians, in memory of the host.
  template <int d>
  void operator()(const char* name, RotaryHalves<d>& rotary) {
    double base = 0;
    if (read_number((std::string(name) + "_base").c_str(), base)) {
      if (!(base > 0)) {
        refuse("%s: argument '%s_base' is %g, but must be more than 0.", operation_, name, base);
      }
      rotary = RotaryHalves<d>(base);
    }
    const std::string frequencies = std::string(name) + "_frequencies";
    if (const auto tensor = next_host_tensor<double>(frequencies.c_str())) {
      if (tensor->ndim() != 1 || tensor->size(0) != d / 2 || !tensor->IsContiguous()) {
        refuse("%s: argument '%s' must be a contiguous vector of %d angles, one for each pair.", operation_,
               frequencies.c_str(), d / 2);
      }
      for (int i = 0; i < d / 2; ++i) {
        rotary.set_frequency(i, static_cast<long double>(data_of<double>(*tensor)[i]));
      }
    }
  }

  /// Any argument, unread.
  tvm::ffi::AnyView next(const char* name) {
    if (next_ >= arguments_.size()) {
      refuse("%s: argument '%s' is missing.", operation_, name);
    }
    return arguments_[next_++];
  }
  /// A tensor of any type on the call's device.
  std::optional<Tensor> next_tensor(const char* name) {
    const auto tensor = tensor_of(name, next(name));
    if (!tensor) {
      return std::nullopt;
    }
    const DLDevice device = tensor->device();
    if (device.device_type != device_type_ || (device_id_ >= 0 && device.device_id != device_id_)) {
      const DLDevice expected{device_type_, device_id_ < 0 ? 0 : device_id_};
      refuse("%s: argument '%s' is on %s, but the call's tensors are on %s.", operation_, name, name_of(device).c_str(),
             name_of(expected).c_str());
    }
    device_id_ = device.device_id;
    return *tensor;
  }
  template <class T>
  std::optional<Tensor> next_tensor(const char* name) {
    const auto tensor = next_tensor(name);
    if (tensor) {
      check_dtype<T>(operation_, name, *tensor);
    }
    return tensor;
  }
  Tensor needed_tensor(const char* name) {
    const auto tensor = next_tensor(name);
    if (!tensor) {
      refuse("%s: argument '%s' is missing.", operation_, name);
    }
    return *tensor;
  }
  /// A tensor in memory of the host, wherever the call's are.
  template <class T>
  std::optional<Tensor> next_host_tensor(const char* name) {
    const auto tensor = tensor_of(name, next(name));
    if (tensor && tensor->device().device_type != kDLCPU && tensor->device().device_type != kDLCUDAHost) {
      refuse("%s: argument '%s' is on %s, but must be on the cpu.", operation_, name, name_of(tensor->device()).c_str());
    }
    if (tensor) {
      check_dtype<T>(operation_, name, *tensor);
    }
    return tensor;
  }
  void check_contiguous(const char* name, const Tensor& tensor) const {
    if (!tensor.IsContiguous()) {
      refuse("%s: argument '%s' must be contiguous.", operation_, name);
    }
  }

  /// Lengths of arrays and parameters, once all extents are known.
  void check_lengths(std::int64_t sequences, std::int64_t channels, std::int64_t taps) const {
    for (const Length& array : arrays_) {
      check_length(array.name.c_str(), array.length, sequences + array.more, "the sequences ask for");
    }
    for (const auto& [name, tensor] : parameters_) {
      const bool is_bias = name.find("bias") == 0;
      const std::int64_t shape[2] = {channels, taps};
      const tvm::ffi::ShapeView expected(shape, is_bias ? 1 : 2);
      if (!std::equal(expected.begin(), expected.end(), tensor.shape().begin(), tensor.shape().end())) {
        refuse("%s: argument '%s' has shape %s, but channels%s ask for %s.", operation_, name.c_str(),
               name_of(tensor.shape()).c_str(), is_bias ? "" : " and taps", name_of(expected).c_str());
      }
    }
  }
  /// That nothing is written where something else is read or written. Tensors with gaps between their elements may lie in
  /// each other's gaps, and are not compared.
  void check_memory() const {
    for (const Memory& written : memory_) {
      for (const Memory& other : memory_) {
        if (written.is_written && &other != &written && written.begin < other.end && other.begin < written.end) {
          refuse("%s: arguments '%s' and '%s' share memory, but what a call writes must not be another argument's.",
                 operation_, written.name, other.name);
        }
      }
    }
  }
  /// A vector of bytes to work in.
  std::optional<Tensor> next_workspace() {
    const auto tensor = next_tensor<std::uint8_t>("workspace");
    if (tensor) {
      check_contiguous("workspace", *tensor);
      remember_memory("workspace", *tensor, true);
    }
    return tensor;
  }
  /// The last argument.
  int next_threads() {
    constexpr std::int64_t most = 4096;
    std::int64_t threads = 1;
    read_number("threads", threads);
    if (threads < 1 || threads > most) {
      refuse("%s: argument 'threads' is %lld, but must be from 1 to %lld.", operation_, static_cast<long long>(threads),
             static_cast<long long>(most));
    }
    return static_cast<int>(threads);
  }
  /// The length that all arrays have; `otherwise` where there are none.
  [[nodiscard]] std::int64_t common_length(std::int64_t otherwise) const {
    for (const Length& array : arrays_) {
      if (array.length != arrays_.front().length) {
        refuse("%s: argument '%s' has %lld elements, but '%s' has %lld.", operation_, array.name.c_str(),
               static_cast<long long>(array.length), arrays_.front().name.c_str(),
               static_cast<long long>(arrays_.front().length));
      }
    }
    return arrays_.empty() ? otherwise : arrays_.front().length;
  }
  [[nodiscard]] int device_id() const { return device_id_; }

 private:
  struct Length {
    std::string name;
    std::int64_t length = 0;
    std::int64_t more = 0;  // than sequences
  };
  struct Memory {
    const char* name;
    std::uintptr_t begin;
    std::uintptr_t end;
    bool is_written;
  };

  void remember_memory(const char* name, const Tensor& tensor, bool is_written) {
    std::int64_t last = 0;  // the distance of the last element from the first
    for (int i = 0; i < tensor.ndim(); ++i) {
      last += (tensor.size(i) - 1) * tensor.stride(i);
    }
    if (tensor.numel() > 0 && last + 1 == tensor.numel()) {
      const auto begin = reinterpret_cast<std::uintptr_t>(data_of<char>(tensor));
      const auto bytes = static_cast<std::uintptr_t>(tensor.numel()) * (tensor.dtype().bits / 8u);
      memory_.push_back({name, begin, begin + bytes, is_written});
    }
  }

  std::optional<Tensor> tensor_of(const char* name, const tvm::ffi::AnyView& any) const {
    if (any == nullptr) {
      return std::nullopt;
    }
    const auto tensor = any.try_cast<Tensor>();
    if (!tensor) {
      refuse("%s: argument '%s' is no tensor.", operation_, name);
    }
    return *tensor;
  }

  template <class T>
  void array(const char* name, const T*& numbers, std::int64_t more) {
    if (const auto tensor = next_tensor<T>(name)) {
      if (tensor->ndim() != 1 || !tensor->IsContiguous()) {
        refuse("%s: argument '%s' must be a contiguous vector.", operation_, name);
      }
      numbers = data_of<T>(*tensor);
      last_length_ = tensor->size(0);
      if (more == 1 && last_length_ < 1) {
        refuse("%s: argument '%s' has no elements, but must have one more than there are sequences.", operation_, name);
      }
      arrays_.push_back({name, last_length_, more});
    }
  }

  /// Whether there is one.
  template <class T>
  bool read_number(const char* name, T& number) {
    const tvm::ffi::AnyView any = next(name);
    if (any == nullptr) {
      return false;
    }
    const auto value = any.try_cast<T>();
    if (!value) {
      refuse("%s: argument '%s' is no number.", operation_, name);
    }
    number = *value;
    return true;
  }

  void check_length(const char* name, std::int64_t length, std::int64_t expected, const char* why) const {
    if (length != expected) {
      refuse("%s: argument '%s' has %lld elements, but %s %lld.", operation_, name, static_cast<long long>(length), why,
             static_cast<long long>(expected));
    }
  }

  const char* operation_;
  tvm::ffi::PackedArgs arguments_;
  DLDeviceType device_type_;
  int device_id_ = -1;
  int next_ = 0;
  std::int64_t last_length_ = 0;
  std::vector<Length> arrays_;
  std::vector<std::pair<std::string, Tensor>> parameters_;
  std::vector<Memory> memory_;
};

}  // namespace jrt::bind
