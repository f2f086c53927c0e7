// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !defined(DLPACK_MAJOR_VERSION) && !defined(DLPACK_VERSION)
#error "jrt/adapters/dlpack.hpp: include your own dlpack/dlpack.h before it; the library has none."
#endif

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <type_traits>

#include "jrt/decode.hpp"
#include "jrt/numeric.hpp"
#include "jrt/state.hpp"
#include "jrt/status.hpp"
#include "jrt/tensor_view.hpp"

/// DLPack tensors as arguments of the library, and its views as DLPack tensors, for engines that pass those. Nothing is
/// copied and nothing allocated; whoever owns a tensor goes on owning it.
namespace jrt::dlpack {

namespace detail {

// kDLComplex and kDLBool, which headers before DLPack 0.4 and 0.8 do not have.
inline constexpr std::uint8_t complex_code = 5;
inline constexpr std::uint8_t bool_code = 6;

template <class T>
requires(Element<T> || std::is_integral_v<T>) constexpr DLDataType type_of() {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return {kDLBfloat, 16, 1};
  } else if constexpr (Element<T>) {
    return {kDLFloat, static_cast<std::uint8_t>(8 * sizeof(T)), 1};
  } else {
    return {std::is_signed_v<T> ? kDLInt : kDLUInt, static_cast<std::uint8_t>(8 * sizeof(T)), 1};
  }
}

/// A type or a device in words.
struct Words {
  char text[40];

  explicit Words(DLDataType type) {
    const char* const code = type.code == kDLFloat       ? "float"
                             : type.code == kDLBfloat    ? "bfloat"
                             : type.code == kDLInt       ? "int"
                             : type.code == kDLUInt      ? "uint"
                             : type.code == complex_code ? "complex"
                             : type.code == bool_code    ? "bool"
                                                         : nullptr;
    if (code == nullptr) {
      std::snprintf(text, sizeof text, "type code %d, bits %d", type.code, type.bits);
    } else if (type.lanes != 1) {
      std::snprintf(text, sizeof text, "%s%d of %d lanes", code, type.bits, type.lanes);
    } else if (type.code == bool_code && type.bits == 8) {
      std::snprintf(text, sizeof text, "%s", code);
    } else {
      std::snprintf(text, sizeof text, "%s%d", code, type.bits);
    }
  }
  explicit Words(DLDevice device) {
    const char* const kind = device.device_type == kDLCPU           ? "cpu"
                             : device.device_type == kDLCUDA        ? "cuda"
                             : device.device_type == kDLCUDAHost    ? "cuda's host memory"
                             : device.device_type == kDLCUDAManaged ? "cuda's managed memory"
                                                                    : nullptr;
    if (kind == nullptr) {
      std::snprintf(text, sizeof text, "device type %d:%d", static_cast<int>(device.device_type), device.device_id);
    } else if (device.device_type == kDLCUDA) {
      std::snprintf(text, sizeof text, "cuda:%d", device.device_id);
    } else {
      std::snprintf(text, sizeof text, "%s", kind);
    }
  }
};

/// Whether calls on `device` can read memory of `memory`: its own, or memory that the host and a GPU share.
constexpr bool is_readable(DLDevice memory, DLDevice device) {
  const bool shared = memory.device_type == kDLCUDAHost || memory.device_type == kDLCUDAManaged;
  const bool host = device.device_type == kDLCPU;
  return (memory.device_type == device.device_type && (host || memory.device_id == device.device_id)) ||
         (shared && (host || device.device_type == kDLCUDA));
}

}  // namespace detail

/// Reads the tensors of one call into its arguments, and keeps the first thing that is wrong with them:
///
///     jrt::PrefillArgs<Config> args;
///     jrt::dlpack::Reader read("prefill", {kDLCPU, 0});
///     read("query", q, args.query), read("key", k, args.key), read("value", v, args.value), read("output", y,
///     args.output); if (!read.status()) { … }
///
/// Checked are what the call itself cannot see: types, devices, ranks, that rows are contiguous, lengths of arrays. All
/// else is the call's. A null tensor leaves its argument as it is, as does every tensor after an error.
class Reader {
 public:
  Reader(const char* operation, DLDevice device) : operation_(operation), device_(device) {}

  [[nodiscard]] const Status& status() const { return status_; }

  /// (batch, tokens, heads, dim), or packed (tokens, heads, dim). For (batch, heads, tokens, dim) use the view's
  /// `transposed()`.
  template <class T>
  void operator()(const char* name, const DLTensor* tensor, TensorView<T>& view) {
    if (tensor == nullptr || !holds<T>(name, *tensor) || !has_rank(name, *tensor, 3, 4, "tokens, heads, dim")) {
      return;
    }
    Extents extents{};
    if (!read_extents(name, *tensor, extents) || !last_is_contiguous(name, extents)) {
      return;
    }
    view = {data<T>(*tensor), extents.size[0],   extents.size[1],   extents.size[2],
            extents.size[3],  extents.stride[0], extents.stride[1], extents.stride[2]};
  }

  /// A pool, (slots, heads, head_elements), contiguous but for the distance between slots.
  template <class Format>
  void operator()(const char* name, const DLTensor* tensor, StatePoolView<Format>& pool) {
    constexpr std::int64_t head = Format::head_elements;
    Extents extents{};
    if (tensor == nullptr || !holds<typename Format::Scalar>(name, *tensor) ||
        !has_rank(name, *tensor, 3, 3, "slots, heads, head_elements") || !read_extents(name, *tensor, extents) ||
        !last_is_contiguous(name, extents) || !equal(name, "head_elements", extents.size[3], head) ||
        !equal(name, "stride between heads", extents.size[2] > 1 ? extents.stride[2] : head, head)) {
      return;
    }
    pool = {data<typename Format::Scalar>(*tensor), extents.size[1], extents.size[2],
            extents.size[1] > 1 ? extents.stride[1] : extents.size[2] * head};
  }

  /// A staging buffer, (sequences, tokens, heads, row), contiguous.
  template <class Config>
  void operator()(const char* name, const DLTensor* tensor, StagingView<Config>& staging) {
    Extents extents{};
    if (tensor == nullptr || !holds<typename Config::Element>(name, *tensor) ||
        !has_rank(name, *tensor, 4, 4, "sequences, tokens, heads, row") || !read_extents(name, *tensor, extents) ||
        !is_contiguous(name, *tensor, extents) || !equal(name, "row", extents.size[3], StagingView<Config>::row_elements)) {
      return;
    }
    staging = {data<typename Config::Element>(*tensor), extents.size[0], extents.size[1], extents.size[2]};
  }

  /// A contiguous array of `count` elements: lengths, slots, weights.
  template <class T>
  void operator()(const char* name, const DLTensor* tensor, std::int64_t count, T*& array) {
    Extents extents{};
    if (tensor == nullptr || !holds<T>(name, *tensor) || !has_rank(name, *tensor, 1, 4, "elements") ||
        !read_extents(name, *tensor, extents) || !is_contiguous(name, *tensor, extents) ||
        !equal(name, "elements", extents.size[0] * extents.size[1] * extents.size[2] * extents.size[3], count)) {
      return;
    }
    array = data<T>(*tensor);
  }

 private:
  /// The last four dimensions; those that a tensor does not have are of size 1.
  struct Extents {
    std::int64_t size[4];
    std::int64_t stride[4];
  };

  template <class T>
  static T* data(const DLTensor& tensor) {
    return tensor.data == nullptr ? nullptr
                                  : reinterpret_cast<T*>(static_cast<std::byte*>(tensor.data) + tensor.byte_offset);
  }

  template <class... Values>
  bool refuse(const char* format, Values... values) {
    char text[200];
    std::snprintf(text, sizeof text, format, values...);
    status_ = Status::error(StatusCode::invalid_argument, "%s: %s", operation_, text);
    return false;
  }

  bool equal(const char* name, const char* what, std::int64_t value, std::int64_t expected) {
    return value == expected || refuse("argument '%s' has %s = %lld, but must have %lld.", name, what,
                                       static_cast<long long>(value), static_cast<long long>(expected));
  }

  template <class T>
  bool holds(const char* name, const DLTensor& tensor) {
    using E = std::remove_const_t<T>;
    const bool byte_for_byte = std::is_same_v<E, std::uint8_t> && tensor.dtype.code == detail::bool_code;
    const bool word_for_word = std::is_same_v<E, std::uint64_t> && tensor.dtype.code == kDLInt;
    return holds(name, tensor, detail::type_of<E>(), byte_for_byte || word_for_word);
  }
  bool holds(const char* name, const DLTensor& tensor, DLDataType expected, bool any_code) {
    if (!status_.ok()) {
      return false;
    }
    const DLDataType type = tensor.dtype;
    if (type.lanes != 1 || type.bits != expected.bits || (type.code != expected.code && !any_code)) {
      return refuse("argument '%s' has type %s, but must have %s.", name, detail::Words(type).text,
                    detail::Words(expected).text);
    }
    return detail::is_readable(tensor.device, device_) ||
           refuse("argument '%s' is on %s, but the call runs on %s.", name, detail::Words(tensor.device).text,
                  detail::Words(device_).text);
  }

  bool has_rank(const char* name, const DLTensor& tensor, int least, int most, const char* dimensions) {
    return (tensor.ndim >= least && tensor.ndim <= most) ||
           refuse("argument '%s' has %d dimensions, but must have %s%d (%s%s).", name, tensor.ndim,
                  least == most ? ""
                  : least == 3  ? "3 or "
                                : "1 to ",
                  most, least == 3 && most == 4 ? "batch, " : "", dimensions);
  }

  /// Sizes and strides, aligned at the last dimension. Null strides are those of a contiguous tensor.
  bool read_extents(const char* name, const DLTensor& tensor, Extents& extents) {
    std::int64_t elements = 1;
    for (int i = 3; i >= 0; --i) {
      const int dimension = tensor.ndim - 4 + i;
      extents.size[i] = dimension < 0 ? 1 : tensor.shape[dimension];
      // Strides of a tensor without elements, or of one dimension of one element, say nothing.
      extents.stride[i] = dimension < 0 || tensor.strides == nullptr ? elements : tensor.strides[dimension];
      if (extents.size[i] < 0 || __builtin_mul_overflow(elements, extents.size[i] > 0 ? extents.size[i] : 1, &elements)) {
        return refuse("argument '%s' has a dimension of %lld, with which its elements cannot be counted.", name,
                      static_cast<long long>(extents.size[i]));
      }
    }
    return true;
  }

  bool last_is_contiguous(const char* name, Extents& extents) {
    if (is_empty(extents)) {  // frameworks give such tensors any strides
      make_contiguous(extents);
    }
    return extents.size[3] <= 1 || extents.stride[3] == 1 ||
           refuse("argument '%s' has stride %lld in its last dimension, but must have 1.", name,
                  static_cast<long long>(extents.stride[3]));
  }

  bool is_contiguous(const char* name, const DLTensor& tensor, const Extents& extents) {
    Extents contiguous = extents;
    make_contiguous(contiguous);
    for (int i = 0; i < 4; ++i) {
      if (!is_empty(extents) && extents.size[i] > 1 && extents.stride[i] != contiguous.stride[i]) {
        return refuse("argument '%s' has stride %lld in dimension %d, but must be contiguous, with %lld.", name,
                      static_cast<long long>(extents.stride[i]), tensor.ndim - 4 + i,
                      static_cast<long long>(contiguous.stride[i]));
      }
    }
    return true;
  }

  static bool is_empty(const Extents& extents) {
    return extents.size[0] == 0 || extents.size[1] == 0 || extents.size[2] == 0 || extents.size[3] == 0;
  }
  static void make_contiguous(Extents& extents) {
    std::int64_t elements = 1;
    for (int i = 3; i >= 0; --i) {
      extents.stride[i] = elements;
      elements *= extents.size[i];
    }
  }

  const char* operation_;
  DLDevice device_;
  Status status_;
};

/// A view as a DLPack tensor, which points into this object: (batch, tokens, heads, dim), or of a pool (slots, heads,
/// head_elements). The memory stays whose it was.
class Exported {
 public:
  template <class T>
  Exported(const TensorView<T>& view, DLDevice device)
      : shape_{view.batch, view.tokens, view.heads, view.dim},
        strides_{view.batch_stride, view.token_stride, view.head_stride, 1},
        tensor_{of(view.data, device, 4)} {}
  template <class Format>
  Exported(const StatePoolView<Format>& pool, DLDevice device)
      : shape_{pool.slots, pool.heads, Format::head_elements, 0},
        strides_{pool.slot_stride, Format::head_elements, 1, 0},
        tensor_{of(pool.data, device, 3)} {}

  Exported(const Exported&) = delete;
  Exported& operator=(const Exported&) = delete;

  [[nodiscard]] DLTensor* tensor() { return &tensor_; }

 private:
  template <class T>
  DLTensor of(T* data, DLDevice device, int rank) {
    using E = std::remove_const_t<T>;
    return {const_cast<E*>(data), device, rank, detail::type_of<E>(), shape_, strides_, 0};
  }

  std::int64_t shape_[4];
  std::int64_t strides_[4];
  DLTensor tensor_;
};

}  // namespace jrt::dlpack
