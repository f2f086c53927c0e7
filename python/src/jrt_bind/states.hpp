// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <tvm/ffi/any.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <type_traits>

#include "jrt/decode.hpp"
#include "jrt/numeric.hpp"
#include "jrt/state.hpp"
#include "jrt/state_exchange.hpp"
#include "jrt/state_operations.hpp"
#include "jrt_bind/arguments.hpp"
#include "jrt_bind/device.hpp"

#if defined(__CUDACC__)
#include "jrt/detail/cuda/state/backend.cuh"
#else
#include "jrt/detail/cpu/state/backend.hpp"
#endif

/// Operations on whole states of an operator, as one module. Arguments are positional: pools with their slots, other
/// tensors, and last the number of threads.
namespace jrt::bind {

/// Reads what the operations on states take; `run` is the operation.
class StateCall {
 public:
  StateCall(const char* operation, const tvm::ffi::PackedArgs& arguments)
      : operation_(operation), reader_(operation, arguments, device_type) {}

  template <class Format>
  StateSlots<Format> states(const char* name) {
    StateSlots<Format> states;
    reader_(name, states);
    return states;
  }
  Reader& reader() { return reader_; }

  /// How many states: as many as there are slots; where none are given, `otherwise`.
  [[nodiscard]] std::int64_t count(std::int64_t otherwise) const { return reader_.common_length(otherwise); }

  /// Dense arrays of `count` states, in the type that the tensor has: `function(dense)`.
  template <class Format, class Function>
  void with_dense(const Tensor& sums, const Tensor& normaliser, std::int64_t count, std::int64_t heads,
                  const Function& function) const {
    constexpr std::int64_t rows = DenseMap<typename Format::Features>::feature_dim;
    check_shape("sums", sums, {count, heads, rows, Format::columns});
    check_shape("normaliser", normaliser, {count, heads, rows});
    if (rows > 1 && normaliser.numel() > 0 && normaliser.stride(2) != 1) {
      refuse("%s: argument 'normaliser' has stride %lld in its last dimension, but must have 1.", operation_,
             static_cast<long long>(normaliser.stride(2)));
    }
    if (count == 0) {
      return;
    }
    const auto with = [&]<class Scalar>(Scalar /*type*/) {
      check_dtype<Scalar>(operation_, "normaliser", normaliser);
      function(DenseStates<Scalar>{data_of<Scalar>(sums), sums.stride(0), sums.stride(1), sums.stride(2), sums.stride(3),
                                   data_of<Scalar>(normaliser), normaliser.stride(0), normaliser.stride(1)});
    };
    const DLDataType type = sums.dtype();
    if (type.code == kDLFloat && type.bits == 32) {
      with(float{});
    } else if (type.code == kDLFloat && type.bits == 64) {
      with(double{});
    } else if (type.code == kDLFloat && type.bits == 16) {
      with(Half{});
    } else if ((type.code == kDLBfloat || type.code == kDLUInt) && type.bits == 16) {
      with(BFloat16{});
    } else {
      refuse("%s: argument 'sums' has dtype %s, but must have float64, float32, float16 or bfloat16.", operation_,
             name_of(type).c_str());
    }
  }

  /// Runs `function(on)` on the tensors' device; reads the number of threads.
  template <class Function>
  void run(const Function& function) {
    const int threads = reader_.next_threads();
    const int device = reader_.device_id() < 0 ? 0 : reader_.device_id();
    on_device(device, threads, [&](const auto& on) {
      raise_if_failed(function(on));
      return nullptr;
    });
  }

 private:
  void check_shape(const char* name, const Tensor& tensor, std::initializer_list<std::int64_t> shape) const {
    if (tensor.ndim() != static_cast<int>(shape.size()) ||
        !std::equal(shape.begin(), shape.end(), tensor.shape().begin())) {
      refuse("%s: argument '%s' has shape %s, but must have %s.", operation_, name, name_of(tensor.shape()).c_str(),
             name_of(shape).c_str());
    }
  }

  const char* operation_;
  Reader reader_;
};

/// (states, slots)
template <class Format>
std::nullptr_t clear_states(const tvm::ffi::PackedArgs& arguments) {
  StateCall call("clear_states", arguments);
  const auto states = call.states<Format>("states");
  const std::int64_t count = call.count(states.pool.slots);
  call.run([&](const auto& on) { return jrt::clear_states(states, count, on); });
  return nullptr;
}

/// (source, slots, destination, slots)
template <class From, class To>
std::nullptr_t copy_states(const tvm::ffi::PackedArgs& arguments) {
  StateCall call("copy_states", arguments);
  const auto source = call.states<From>("source");
  const auto destination = call.states<To>("destination");
  const std::int64_t count = call.count(source.pool.slots);
  call.run([&](const auto& on) { return jrt::copy_states(source, destination, count, on); });
  return nullptr;
}

/// (source, slots, destination, slots)
template <class Format>
std::nullptr_t merge_states(const tvm::ffi::PackedArgs& arguments) {
  StateCall call("merge_states", arguments);
  const auto source = call.states<Format>("source");
  const auto destination = call.states<Format>("destination");
  const std::int64_t count = call.count(source.pool.slots);
  call.run([&](const auto& on) { return jrt::merge_states(source, destination, count, on); });
  return nullptr;
}

/// (source, slots, sums, normaliser)
template <class Format>
std::nullptr_t export_states(const tvm::ffi::PackedArgs& arguments) {
  StateCall call("export_states", arguments);
  const auto source = call.states<Format>("source");
  const Tensor sums = call.reader().needed_tensor("sums");
  const Tensor normaliser = call.reader().needed_tensor("normaliser");
  const std::int64_t count = call.count(source.pool.slots);
  call.run([&](const auto& on) {
    Status status;
    call.with_dense<Format>(sums, normaliser, count, source.pool.heads,
                            [&](const auto& dense) { status = jrt::export_states(source, dense, count, on); });
    return status;
  });
  return nullptr;
}

/// (sums, normaliser, destination, slots)
template <class Format>
std::nullptr_t import_states(const tvm::ffi::PackedArgs& arguments) {
  StateCall call("import_states", arguments);
  const Tensor sums = call.reader().needed_tensor("sums");
  const Tensor normaliser = call.reader().needed_tensor("normaliser");
  const auto destination = call.states<Format>("destination");
  const std::int64_t count = call.count(sums.ndim() > 0 ? sums.size(0) : 0);
  call.run([&](const auto& on) {
    Status status;
    call.with_dense<Format>(sums, normaliser, count, destination.pool.heads,
                            [&](const auto& dense) { status = jrt::import_states(dense, destination, count, on); });
    return status;
  });
  return nullptr;
}

/// (source, slots, buffer): writes to the buffer, a vector of bytes in memory of the host, or returns bytes if there is
/// none. On a stream the former is asynchronous, as `jrt::save_states` is, and the latter waits.
template <class Format>
tvm::ffi::Any save_states(const tvm::ffi::PackedArgs& arguments) {
  StateCall call("save_states", arguments);
  const auto source = call.states<Format>("source");
  const auto buffer = call.reader().next_host_tensor<std::uint8_t>("buffer");
  const std::int64_t count = call.count(source.pool.slots);
  if (buffer) {
    call.reader().check_contiguous("buffer", *buffer);
    const std::span<std::byte> bytes(data_of<std::byte>(*buffer), static_cast<std::size_t>(buffer->numel()));
    call.run([&](const auto& on) { return jrt::save_states(source, count, bytes, on); });
    return nullptr;
  }
  std::string bytes(static_cast<std::size_t>(saved_states_bytes<Format>(count, source.pool.heads)), '\0');
  call.run([&](const auto& on) {
    const Status status =
        jrt::save_states(source, count, std::as_writable_bytes(std::span<char>(bytes.data(), bytes.size())), on);
    wait_for(on);
    return status;
  });
  return tvm::ffi::Bytes(std::move(bytes));
}

/// An argument of bytes: Python's, or a tensor in memory of the host.
class SavedBytes {
 public:
  SavedBytes(StateCall& call, const char* operation) {
    const tvm::ffi::AnyView any = call.reader().next("buffer");
    owned_ = any.try_cast<tvm::ffi::Bytes>();
    if (owned_) {
      bytes_ = {reinterpret_cast<const std::byte*>(owned_->data()), owned_->size()};
      return;
    }
    const auto tensor = any.try_cast<Tensor>();
    if (!tensor || (tensor->device().device_type != kDLCPU && tensor->device().device_type != kDLCUDAHost)) {
      refuse("%s: argument 'buffer' must be bytes, or a tensor of uint8 on the cpu.", operation);
    }
    check_dtype<std::uint8_t>(operation, "buffer", *tensor);
    call.reader().check_contiguous("buffer", *tensor);
    bytes_ = {data_of<const std::byte>(*tensor), static_cast<std::size_t>(tensor->numel())};
  }

  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
  /// Whether they may be gone after the call.
  [[nodiscard]] bool are_pythons() const { return owned_.has_value(); }

 private:
  std::optional<tvm::ffi::Bytes> owned_;
  std::span<const std::byte> bytes_;
};

/// (buffer, destination, slots). Bytes of Python may be gone after the call, so on a stream it waits for them.
template <class Format>
std::nullptr_t load_states(const tvm::ffi::PackedArgs& arguments) {
  StateCall call("load_states", arguments);
  const SavedBytes buffer(call, "load_states");
  const auto destination = call.states<Format>("destination");
  const std::int64_t count = call.count(destination.pool.slots);
  call.run([&](const auto& on) {
    const Status status = jrt::load_states(buffer.bytes(), destination, count, on);
    if (buffer.are_pythons()) {
      wait_for(on);
    }
    return status;
  });
  return nullptr;
}

/// (buffer): how many states it says to hold; −1 where it is too short to say so.
inline std::int64_t saved_count(const tvm::ffi::PackedArgs& arguments) {
  StateCall call("saved_count", arguments);
  const SavedBytes buffer(call, "load_states");
  SavedStatesHeader header{};
  if (buffer.bytes().size() < sizeof header) {
    return -1;
  }
  std::memcpy(&header, buffer.bytes().data(), sizeof header);
  return header.count;
}

/// "elements of a head's state;elements of a staged row;rows of a dense state;columns", 0 and 0 where states are no sums.
template <class Config>
tvm::ffi::String describe_states() {
  using Format = StateFormatOf<Config>;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  if constexpr (jrt::detail::is_sum<Format>) {
    rows = DenseMap<typename Format::Features>::feature_dim;
    columns = Format::columns;
  }
  std::string text;
  for (const std::int64_t number :
       {std::int64_t{Format::head_elements}, std::int64_t{jrt::detail::staged_row_elements<Config>}, rows, columns}) {
    text += (text.empty() ? "" : ";") + std::to_string(number);
  }
  return text;
}

}  // namespace jrt::bind

#define JRT_BIND_STATE_FUNCTION(name, ...) \
  JRT_BIND_FUNCTION(name, [](const auto& args) { return jrt::bind::__VA_ARGS__(args); })

/// Exports the operations on states of an operator.
#define JRT_BIND_EXPORT_STATES(Config)                                        \
  using BoundFormat = jrt::StateFormatOf<Config>;                             \
  JRT_BIND_STATE_FUNCTION(clear_states, clear_states<BoundFormat>)            \
  JRT_BIND_STATE_FUNCTION(copy_states, copy_states<BoundFormat, BoundFormat>) \
  JRT_BIND_STATE_FUNCTION(save_states, save_states<BoundFormat>)              \
  JRT_BIND_STATE_FUNCTION(load_states, load_states<BoundFormat>)              \
  JRT_BIND_STATE_FUNCTION(saved_count, saved_count)                           \
  JRT_BIND_FUNCTION(describe, [](const auto& /*args*/) { return jrt::bind::describe_states<Config>(); })

/// The same of linear attention, whose states are sums.
#define JRT_BIND_EXPORT_SUMS(Config)                                 \
  JRT_BIND_EXPORT_STATES(Config)                                     \
  JRT_BIND_STATE_FUNCTION(merge_states, merge_states<BoundFormat>)   \
  JRT_BIND_STATE_FUNCTION(export_states, export_states<BoundFormat>) \
  JRT_BIND_STATE_FUNCTION(import_states, import_states<BoundFormat>)

/// Exports the conversion of one operator's states to another's.
#define JRT_BIND_EXPORT_CONVERSION(From, To) \
  JRT_BIND_STATE_FUNCTION(copy_states, copy_states<jrt::StateFormatOf<From>, jrt::StateFormatOf<To>>)
