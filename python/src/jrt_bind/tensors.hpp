// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>

#include "jrt/adapters/dlpack.hpp"
#include "jrt/numeric.hpp"
#include "jrt/status.hpp"

/// What DLPack tensors hold and where, and how errors reach Python.
namespace jrt::bind {

using Tensor = tvm::ffi::TensorView;

/// Raises Python's ValueError.
template <class... Parts>
[[noreturn]] void refuse(const char* format, Parts... parts) {
  char message[512];
  std::snprintf(message, sizeof message, format, parts...);
  throw tvm::ffi::Error("ValueError", message, "");
}

/// Raises what a status says, if it is an error.
inline void raise_if_failed(const Status& status) {
  if (!status.ok()) {
    const bool value = status.code() == StatusCode::invalid_argument || status.code() == StatusCode::corrupt_data;
    throw tvm::ffi::Error(value ? "ValueError" : "RuntimeError", std::string(status.message()), "");
  }
}

// -- types and devices ---------------------------------------------------------------------------------------------------

// Their words are those of the adapter for C++ engines. The rest of that adapter is not used: it reads one tensor at a time
// into a Status, which a caller looks at; here arguments come by position, in the order that `visit_fields` tells, and what
// is wrong is raised. As for jrt/dispatch.hpp: an operator is a type from the start, compiled for the call, so there is
// nothing to be found by name when the call runs.
inline std::string name_of(DLDataType type) {
  return dlpack::detail::Words(type).text;
}
inline std::string name_of(DLDevice device) {
  return dlpack::detail::Words(device).text;
}
/// As Python writes it: (3, 4).
template <class Shape>
std::string name_of(const Shape& shape) requires requires {
  shape.begin();
}
{
  std::string text = "(";
  for (const std::int64_t extent : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

template <class T>
void check_dtype(const char* operation, const char* name, const Tensor& tensor) {
  using E = std::remove_const_t<T>;
  const DLDataType actual = tensor.dtype();
  const DLDataType expected = dlpack::detail::type_of<E>();
  // A byte may be a bool, a word of a state is whatever has its size, and NumPy's bfloat16 comes as its bits.
  const bool as_good = (std::is_same_v<E, std::uint8_t> && actual.code == kDLBool) ||
                       (std::is_same_v<E, std::uint64_t> && actual.code == kDLInt) ||
                       (std::is_same_v<E, BFloat16> && actual.code == kDLUInt);
  if (actual.lanes != 1 || actual.bits != expected.bits || (actual.code != expected.code && !as_good)) {
    refuse("%s: argument '%s' has dtype %s, but the operator's is %s.", operation, name, name_of(actual).c_str(),
           name_of(expected).c_str());
  }
}

template <class T>
T* data_of(const Tensor& tensor) {
  return reinterpret_cast<T*>(static_cast<char*>(tensor.data_ptr()) + tensor.byte_offset());
}

}  // namespace jrt::bind
