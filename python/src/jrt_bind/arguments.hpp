// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <tvm/ffi/any.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "jrt/decode.hpp"
#include "jrt/numeric.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

/// From DLPack tensors to the arguments of the library's operations. What only the binding can see is checked here: types,
/// devices, ranks, that rows are contiguous and arrays long enough. All else is checked by the operation itself.
namespace jrt::bind {

using Tensor = tvm::ffi::TensorView;

/// Raises Python's ValueError.
template <class... Parts>
[[noreturn]] void refuse(const char* format, Parts... parts) {
  char message[512];
  std::snprintf(message, sizeof message, format, parts...);
  throw tvm::ffi::Error("ValueError", message, "");
}

// -- types and devices ---------------------------------------------------------------------------------------------------

template <class T>
struct DtypeOf;
template <>
struct DtypeOf<float> {
  static constexpr DLDataType type{kDLFloat, 32, 1};
};
template <>
struct DtypeOf<double> {
  static constexpr DLDataType type{kDLFloat, 64, 1};
};
template <>
struct DtypeOf<Half> {
  static constexpr DLDataType type{kDLFloat, 16, 1};
};
template <>
struct DtypeOf<BFloat16> {
  static constexpr DLDataType type{kDLBfloat, 16, 1};
};
template <>
struct DtypeOf<std::int32_t> {
  static constexpr DLDataType type{kDLInt, 32, 1};
};
template <>
struct DtypeOf<std::uint8_t> {
  static constexpr DLDataType type{kDLUInt, 8, 1};
};
template <>
struct DtypeOf<std::uint64_t> {
  static constexpr DLDataType type{kDLUInt, 64, 1};
};

inline std::string name_of(DLDataType type) {
  const char* kind = type.code == kDLFloat    ? "float"
                     : type.code == kDLBfloat ? "bfloat"
                     : type.code == kDLInt    ? "int"
                     : type.code == kDLUInt   ? "uint"
                     : type.code == kDLBool   ? "bool"
                                              : "type ";
  return type.code == kDLBool ? kind : kind + std::to_string(type.bits);
}
inline std::string name_of(DLDevice device) {
  const char* kind = device.device_type == kDLCPU ? "cpu" : device.device_type == kDLCUDA ? "cuda" : "device type ";
  return device.device_type == kDLCPU ? kind : std::string(kind) + ":" + std::to_string(device.device_id);
}

template <class T>
void check_dtype(const char* operation, const char* name, const Tensor& tensor) {
  using E = std::remove_const_t<T>;
  const DLDataType actual = tensor.dtype();
  const DLDataType expected = DtypeOf<E>::type;
  // A byte may be a bool, and a word of a state is whatever has its size.
  const bool as_good = (std::is_same_v<E, std::uint8_t> && actual.code == kDLBool) ||
                       (std::is_same_v<E, std::uint64_t> && actual.code == kDLInt);
  if (actual.lanes != 1 || actual.bits != expected.bits || (actual.code != expected.code && !as_good)) {
    refuse("%s: argument '%s' has dtype %s, but the operator's is %s.", operation, name, name_of(actual).c_str(),
           name_of(expected).c_str());
  }
}

template <class T>
T* data_of(const Tensor& tensor) {
  return reinterpret_cast<T*>(static_cast<char*>(tensor.data_ptr()) + tensor.byte_offset());
}

// -- arguments -----------------------------------------------------------------------------------------------------------

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
      if (!tensor->IsContiguous()) {
        refuse("%s: argument '%s' must be contiguous.", operation_, name);
      }
      parameters = data_of<T>(*tensor);
      parameters_.push_back({name, tensor->numel()});
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

  void operator()(const char* name, std::int64_t& number) { read_number(name, number); }
  void operator()(const char* name, double& number) { read_number(name, number); }

  std::optional<Tensor> next_tensor_of_bytes(const char* name) { return next_tensor<std::uint8_t>(name); }

  /// Lengths of arrays and parameters, once all extents are known.
  void check_lengths(std::int64_t sequences, std::int64_t channels, std::int64_t taps) const {
    for (const Length& array : arrays_) {
      check_length(array.name.c_str(), array.length, sequences + array.more, "the sequences ask for");
    }
    for (const Length& parameters : parameters_) {
      const bool is_bias = parameters.name.find("bias") == 0;
      check_length(parameters.name.c_str(), parameters.length, is_bias ? channels : channels * taps,
                   "channels and taps ask for");
    }
  }
  [[nodiscard]] int device_id() const { return device_id_; }
  [[nodiscard]] int read() const { return next_; }

 private:
  struct Length {
    std::string name;
    std::int64_t length = 0;
    std::int64_t more = 0;  // than sequences
  };

  tvm::ffi::AnyView next(const char* name) {
    if (next_ >= arguments_.size()) {
      refuse("%s: argument '%s' is missing.", operation_, name);
    }
    return arguments_[next_++];
  }

  template <class T>
  std::optional<Tensor> next_tensor(const char* name) {
    const tvm::ffi::AnyView any = next(name);
    if (any == nullptr) {
      return std::nullopt;
    }
    const auto tensor = any.try_cast<Tensor>();
    if (!tensor) {
      refuse("%s: argument '%s' is no tensor.", operation_, name);
    }
    const DLDevice device = tensor->device();
    if (device.device_type != device_type_ || (device_id_ >= 0 && device.device_id != device_id_)) {
      const DLDevice expected{device_type_, device_id_ < 0 ? 0 : device_id_};
      refuse("%s: argument '%s' is on %s, but the call's tensors are on %s.", operation_, name, name_of(device).c_str(),
             name_of(expected).c_str());
    }
    device_id_ = device.device_id;
    check_dtype<T>(operation_, name, *tensor);
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

  template <class T>
  void read_number(const char* name, T& number) {
    const tvm::ffi::AnyView any = next(name);
    if (any == nullptr) {
      return;
    }
    const auto value = any.try_cast<T>();
    if (!value) {
      refuse("%s: argument '%s' is no number.", operation_, name);
    }
    number = *value;
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
  std::vector<Length> parameters_;
};

/// Names of the arguments, as `Reader` takes them.
class NameList {
 public:
  template <class T>
  void operator()(const char* name, const TensorView<T>& /*view*/) {
    add(name, std::is_const_v<T> ? "tensor" : "output");
  }
  template <class Format>
  void operator()(const char* name, const StateSlots<Format>& /*states*/) {
    add(name, "states");
    add((std::string(name) + "_slots").c_str(), "array");
  }
  void operator()(const char* /*name*/, const Sequences& /*sequences*/) {
    for (const char* name :
         {"cu_seqlens", "cu_encoder_seqlens", "seq_lens", "prefix_lens", "left_pads", "first_positions"}) {
      add(name, "array");
    }
    add("max_tokens", "number");
  }
  template <class T>
  void operator()(const char* name, T* const& /*data*/) {
    add(name, Element<std::remove_const_t<T>> ? (std::is_const_v<T> ? "tensor" : "output") : "array");
  }
  template <class Config>
  void operator()(const char* name, const StagingView<Config>& /*staging*/) {
    add(name, "output");
  }
  void operator()(const char* name, const std::int64_t& /*number*/) { add(name, "number"); }
  void operator()(const char* name, const double& /*number*/) { add(name, "number"); }

  [[nodiscard]] const std::string& names() const { return names_; }

 private:
  void add(const char* name, const char* kind) { names_ += (names_.empty() ? "" : ",") + std::string(name) + ":" + kind; }

  std::string names_;
};

/// Visits the fields of any mixer's argument struct that a binding sets, by name. Feature maps and rotations have no
/// run-time data here.
template <class Args, class Visitor>
void visit_fields(Args& args, Visitor& visit) {
#define JRT_BIND_FIELD(field)               \
  if constexpr (requires { args.field; }) { \
    visit(#field, args.field);              \
  }
  JRT_BIND_FIELD(query)
  JRT_BIND_FIELD(key)
  JRT_BIND_FIELD(value)
  JRT_BIND_FIELD(key_encoder)
  JRT_BIND_FIELD(value_encoder)
  JRT_BIND_FIELD(input)
  JRT_BIND_FIELD(gate)
  JRT_BIND_FIELD(weight)
  JRT_BIND_FIELD(bias)
  JRT_BIND_FIELD(output)
  JRT_BIND_FIELD(denominators)
  JRT_BIND_FIELD(log_sum_exp)
  JRT_BIND_FIELD(sequences)
  JRT_BIND_FIELD(initial_state)
  JRT_BIND_FIELD(final_state)
  JRT_BIND_FIELD(has_initial_state)
  JRT_BIND_FIELD(source)
  JRT_BIND_FIELD(destination)
  JRT_BIND_FIELD(state)
  JRT_BIND_FIELD(staging)
  JRT_BIND_FIELD(already_staged)
  JRT_BIND_FIELD(accepted_tokens)
  JRT_BIND_FIELD(first_positions)
  JRT_BIND_FIELD(scale)
  JRT_BIND_FIELD(output_gradient)
  JRT_BIND_FIELD(final_state_gradient)
  JRT_BIND_FIELD(query_gradient)
  JRT_BIND_FIELD(key_gradient)
  JRT_BIND_FIELD(value_gradient)
  JRT_BIND_FIELD(key_encoder_gradient)
  JRT_BIND_FIELD(value_encoder_gradient)
  JRT_BIND_FIELD(input_gradient)
  JRT_BIND_FIELD(gate_gradient)
  JRT_BIND_FIELD(weight_gradient)
  JRT_BIND_FIELD(bias_gradient)
  JRT_BIND_FIELD(initial_state_gradient)
#undef JRT_BIND_FIELD
}

}  // namespace jrt::bind
