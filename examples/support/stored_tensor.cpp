// SPDX-License-Identifier: Apache-2.0
#include "support/stored_tensor.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>

namespace support {

namespace {

static_assert(std::endian::native == std::endian::little, "numbers are copied as they lie in the file");

struct Boolean {
  std::uint8_t value;
};

/// The types of a file's numbers. Calls `f` with the name and the C++ type of each until it returns true.
template <class F>
bool any_dtype(F f) {
  const auto is = [&]<class T>(const char* name, std::type_identity<T> type) { return f(name, type); };
  return is("F64", std::type_identity<double>()) || is("F32", std::type_identity<float>()) ||
         is("F16", std::type_identity<jrt::Half>()) || is("BF16", std::type_identity<jrt::BFloat16>()) ||
         is("I64", std::type_identity<std::int64_t>()) || is("I32", std::type_identity<std::int32_t>()) ||
         is("I16", std::type_identity<std::int16_t>()) || is("I8", std::type_identity<std::int8_t>()) ||
         is("U8", std::type_identity<std::uint8_t>()) || is("BOOL", std::type_identity<Boolean>());
}

/// Calls `f` with the type of the file's numbers; false if it is unknown.
template <class F>
bool with_type_of(std::string_view dtype, F f) {
  return any_dtype([&]<class T>(const char* name, std::type_identity<T> type) { return dtype == name && (f(type), true); });
}

/// Where the numbers of a tensor lie, one after the other as its shape counts them: how far from the first, in numbers.
class NumberOffsets {
 public:
  NumberOffsets(const StoredTensor& tensor, std::int64_t first)
      : shape_(tensor.shape),
        strides_(tensor.strides.empty() ? contiguous_strides(tensor.shape) : tensor.strides),
        index_(tensor.shape.size()) {
    if (tensor.size() == 0) {
      return;
    }
    for (std::size_t d = shape_.size(); d-- > 0;) {
      index_[d] = first % shape_[d];
      first /= shape_[d];
      offset_ += index_[d] * strides_[d];
    }
  }

  [[nodiscard]] std::int64_t operator*() const { return offset_; }
  NumberOffsets& operator++() {
    for (std::size_t d = shape_.size(); d-- > 0;) {
      offset_ += strides_[d];
      if (++index_[d] < shape_[d]) {
        break;
      }
      offset_ -= index_[d] * strides_[d];
      index_[d] = 0;
    }
    return *this;
  }

 private:
  std::span<const std::int64_t> shape_;
  std::vector<std::int64_t> strides_;
  std::vector<std::int64_t> index_;
  std::int64_t offset_ = 0;
};

template <class To, class From>
To converted(From number) {
  if constexpr (std::is_same_v<From, Boolean>) {
    return converted<To>(number.value);
  } else if constexpr (jrt::Element<To> && jrt::Element<From>) {
    return jrt::convert<To>(number);
  } else if constexpr (std::is_arithmetic_v<To>) {
    return static_cast<To>(number);
  } else {
    return To{static_cast<float>(number)};
  }
}

template <class From>
From load(const std::byte* bytes, std::int64_t index) {
  From number;
  std::memcpy(&number, bytes + index * static_cast<std::int64_t>(sizeof(From)), sizeof(From));
  return number;
}

/// Numbers [first, first + count) of a tensor, of which there are some.
template <class From, class To>
void convert_all(const StoredTensor& tensor, To* to, std::int64_t first, std::int64_t count) {
  const std::byte* const from = tensor.bytes.data();
  if (!tensor.strides.empty()) {
    NumberOffsets offset(tensor, first);
    for (std::int64_t i = 0; i < count; ++i, ++offset) {
      to[i] = converted<To>(load<From>(from, *offset));
    }
  } else if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from + first * static_cast<std::int64_t>(sizeof(From)), static_cast<std::size_t>(count) * sizeof(To));
  } else {
    for (std::int64_t i = 0; i < count; ++i) {
      to[i] = converted<To>(load<From>(from, first + i));
    }
  }
}

}  // namespace

std::size_t width_of_dtype(std::string_view dtype) {
  std::size_t width = 0;
  with_type_of(dtype, [&]<class T>(std::type_identity<T> /*type*/) { width = sizeof(T); });
  return width;
}

std::string known_dtypes() {
  std::string names;
  any_dtype([&](const char* name, auto /*type*/) {
    names += (names.empty() ? "" : ", ") + std::string(name);
    return false;
  });
  return names;
}

std::uint64_t checked_bytes(const StoredTensor& tensor) {
  auto bytes = static_cast<std::int64_t>(width_of_dtype(tensor.dtype));
  bool empty = false;
  for (const std::int64_t extent : tensor.shape) {
    empty = empty || extent == 0;
    if (__builtin_mul_overflow(bytes, std::max<std::int64_t>(extent, 1), &bytes)) {
      throw std::runtime_error(tensor.origin + " has the shape " + shape_text(tensor.shape) + ", which needs more than " +
                               std::to_string(std::numeric_limits<std::int64_t>::max()) + " bytes");
    }
  }
  return empty ? 0 : static_cast<std::uint64_t>(bytes);
}

bool same_numbers(const StoredTensor& a, const StoredTensor& b) {
  if (a.dtype != b.dtype || a.shape != b.shape) {
    return false;
  }
  if (a.bytes.data() == b.bytes.data() && a.strides == b.strides) {
    return true;
  }
  if (a.strides.empty() && b.strides.empty()) {
    return std::equal(a.bytes.begin(), a.bytes.end(), b.bytes.begin());
  }
  const auto width = static_cast<std::int64_t>(width_of_dtype(a.dtype));
  NumberOffsets of_a(a, 0);
  NumberOffsets of_b(b, 0);
  for (std::int64_t left = a.size(); left > 0; --left, ++of_a, ++of_b) {
    if (std::memcmp(a.bytes.data() + *of_a * width, b.bytes.data() + *of_b * width, static_cast<std::size_t>(width)) != 0) {
      return false;
    }
  }
  return true;
}

std::vector<std::int64_t> contiguous_strides(std::span<const std::int64_t> shape) {
  std::vector<std::int64_t> strides(shape.size());
  std::int64_t stride = 1;
  for (std::size_t d = shape.size(); d-- > 0; stride *= shape[d]) {
    strides[d] = stride;
  }
  return strides;
}

void StoredTensor::require_convertible(bool to_integer) const {
  if (to_integer && (dtype.starts_with('F') || dtype == "BF16")) {
    throw std::runtime_error(origin + " has the dtype " + dtype + ", but whole numbers are asked for");
  }
}

template <TensorNumber To>
void StoredTensor::copy_to(To* destination, std::int64_t first, std::int64_t count) const {
  constexpr bool to_integer = std::is_integral_v<To>;
  require_convertible(to_integer);
  const std::int64_t stored = size();
  if (first < 0 || count < 0 || first > stored || count > stored - first) {
    throw std::runtime_error(origin + " has " + std::to_string(stored) + " numbers, but " + std::to_string(count) +
                             " from number " + std::to_string(first) + " are asked for");
  }
  if (count == 0) {
    return;
  }
  with_type_of(dtype, [&]<class From>(std::type_identity<From> /*type*/) {
    if constexpr (!to_integer || std::is_integral_v<From> || std::is_same_v<From, Boolean>) {
      convert_all<From>(*this, destination, first, count);
    }
  });
}

template void StoredTensor::copy_to(float*, std::int64_t, std::int64_t) const;
template void StoredTensor::copy_to(double*, std::int64_t, std::int64_t) const;
template void StoredTensor::copy_to(std::int64_t*, std::int64_t, std::int64_t) const;
template void StoredTensor::copy_to(jrt::Half*, std::int64_t, std::int64_t) const;
template void StoredTensor::copy_to(jrt::BFloat16*, std::int64_t, std::int64_t) const;

std::string shape_text(std::span<const std::int64_t> shape) {
  constexpr std::size_t max_shown = 12;
  std::string text = "[";
  for (std::size_t i = 0; i < std::min(shape.size(), max_shown); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + (shape.size() > max_shown ? ", ...]" : "]");
}

}  // namespace support
