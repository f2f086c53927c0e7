// SPDX-License-Identifier: Apache-2.0
#include "support/stored_tensor.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <type_traits>

namespace support {

namespace {

static_assert(std::endian::native == std::endian::little, "numbers are copied as they lie in the file");

/// Calls `f` with the type of the file's numbers; false if it is unknown.
template <class F>
bool with_type_of(std::string_view dtype, F f) {
  const auto is = [&]<class T>(std::string_view name, std::type_identity<T> type) {
    return dtype == name && (f(type), true);
  };
  return is("F32", std::type_identity<float>()) || is("BF16", std::type_identity<jrt::BFloat16>()) ||
         is("F16", std::type_identity<jrt::Half>()) || is("F64", std::type_identity<double>()) ||
         is("I64", std::type_identity<std::int64_t>()) || is("I32", std::type_identity<std::int32_t>()) ||
         is("U8", std::type_identity<std::uint8_t>());
}

template <class To, class From>
To converted(From number) {
  if constexpr (jrt::Element<To> && jrt::Element<From>) {
    return jrt::convert<To>(number);
  } else if constexpr (std::is_arithmetic_v<To>) {
    return static_cast<To>(number);
  } else {
    return To{static_cast<float>(number)};
  }
}

template <class From, class To>
void convert_all(const std::byte* from, To* to, std::int64_t count) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(To));
  } else {
    for (std::int64_t i = 0; i < count; ++i) {
      From number;
      std::memcpy(&number, from + i * static_cast<std::int64_t>(sizeof(From)), sizeof(From));
      to[i] = converted<To>(number);
    }
  }
}

}  // namespace

std::size_t width_of_dtype(std::string_view dtype) {
  std::size_t width = 0;
  with_type_of(dtype, [&]<class T>(std::type_identity<T> /*type*/) { width = sizeof(T); });
  return width;
}

void StoredTensor::require_convertible(bool to_integer) const {
  if (to_integer && (dtype.starts_with('F') || dtype.starts_with('B'))) {
    throw std::runtime_error(origin + " has the dtype " + dtype + ", but whole numbers are asked for");
  }
}

template <TensorNumber To>
void StoredTensor::copy_to(To* destination, std::int64_t first, std::int64_t count) const {
  constexpr bool to_integer = std::is_integral_v<To>;
  require_convertible(to_integer);
  const auto stored = static_cast<std::int64_t>(bytes.size() / std::max<std::size_t>(width_of_dtype(dtype), 1));
  if (first < 0 || count < 0 || first > stored || count > stored - first) {
    throw std::runtime_error(origin + " has " + std::to_string(stored) + " numbers, but " + std::to_string(count) +
                             " from number " + std::to_string(first) + " are asked for");
  }
  if (count == 0) {
    return;
  }
  with_type_of(dtype, [&]<class From>(std::type_identity<From> /*type*/) {
    if constexpr (!to_integer || std::is_integral_v<From>) {
      convert_all<From>(bytes.data() + first * static_cast<std::int64_t>(sizeof(From)), destination, count);
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
