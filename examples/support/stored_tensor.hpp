// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <jrt/numeric.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace support {

/// What a tensor's numbers can be converted to.
template <class To>
concept TensorNumber = jrt::Element<To> || std::same_as<To, std::int64_t>;

/// A view of one tensor in a file; valid while the TensorFile lives, moved or not.
struct StoredTensor {
  std::string dtype{};  ///< one of known_dtypes()
  std::vector<std::int64_t> shape{};
  std::span<const std::byte> bytes{};  ///< from the first number to the last; little-endian, at any alignment
  std::string origin{};                ///< "FILE: tensor 'NAME'", for messages
  /// How many numbers lie between neighbours of each dimension; empty: last dimension fastest, without gaps.
  std::vector<std::int64_t> strides{};

  /// Count of numbers. Nothing overflows: neither this nor its bytes, even with every 0 in the shape taken for a 1.
  [[nodiscard]] std::int64_t size() const {
    std::int64_t size = 1;
    for (const std::int64_t extent : shape) {
      size *= extent;
    }
    return size;
  }

  /// The numbers, converted to `To`: rounded to nearest where it is narrower. Only integers convert to std::int64_t.
  template <TensorNumber To>
  [[nodiscard]] std::vector<To> as() const {
    require_convertible(std::same_as<To, std::int64_t>);
    std::vector<To> numbers(static_cast<std::size_t>(size()));
    copy_to(numbers.data());
    return numbers;
  }

  /// The same to memory for size() numbers, or for `count` of them from number `first`.
  template <TensorNumber To>
  void copy_to(To* destination) const {
    copy_to(destination, 0, size());
  }
  template <TensorNumber To>
  void copy_to(To* destination, std::int64_t first, std::int64_t count) const;

 private:
  void require_convertible(bool to_integer) const;
};

extern template void StoredTensor::copy_to(float*, std::int64_t, std::int64_t) const;
extern template void StoredTensor::copy_to(double*, std::int64_t, std::int64_t) const;
extern template void StoredTensor::copy_to(std::int64_t*, std::int64_t, std::int64_t) const;
extern template void StoredTensor::copy_to(jrt::Half*, std::int64_t, std::int64_t) const;
extern template void StoredTensor::copy_to(jrt::BFloat16*, std::int64_t, std::int64_t) const;

/// Bytes of one number of that type; 0 if it is none that a StoredTensor may have.
std::size_t width_of_dtype(std::string_view dtype);

/// The types that a StoredTensor may have, as messages show them: "F64, F32, ...".
std::string known_dtypes();

/// Bytes of as many numbers as the tensor's shape has, without gaps. std::runtime_error where that, with every 0 in the
/// shape taken for a 1, is more than 64 bits with a sign can count: users may then multiply extents in any order.
std::uint64_t checked_bytes(const StoredTensor& tensor);

/// Whether two tensors have the same type and shape and, to the bit, the same numbers.
bool same_numbers(const StoredTensor& a, const StoredTensor& b);

/// Strides of a tensor without gaps, last dimension fastest.
std::vector<std::int64_t> contiguous_strides(std::span<const std::int64_t> shape);

/// A shape as messages show it: "[2, 3]".
std::string shape_text(std::span<const std::int64_t> shape);

}  // namespace support
