// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace support {

/// A tensor as torch.save describes it: a strided view of a storage, which lies elsewhere. Nothing of it is checked against
/// the storage. Valid while the pickle's bytes are there.
struct PickledTensor {
  std::string_view dtype{};             ///< of the storage's numbers, one of known_dtypes()
  std::string_view storage{};           ///< the storage's key
  std::int64_t storage_size = 0;        ///< of the whole storage, in numbers; not negative
  std::int64_t offset = 0;              ///< of the first number; not negative
  std::vector<std::int64_t> shape{};    ///< at most 64 extents, none negative
  std::vector<std::int64_t> strides{};  ///< in numbers, one for each extent, none negative
};

/// The tensors of a pickled dictionary, by name; of a dictionary that has one called `state_dict`, the tensors of that one.
///
/// A pickle is a program for a stack machine that may call any function of Python's. This machine has no functions: it
/// knows the few names that describe tensors, storages and dictionaries, makes a description of each, and refuses every
/// other name before anything else is looked at. Time and memory are linear in the bytes, and there are at most a million
/// values. Errors are std::runtime_error, one line: `source`, the byte, and what is wrong there.
///
/// Source of the format: Python's Lib/pickletools.py (protocols 2 to 5), torch/serialization.py and torch/_utils.py.
std::map<std::string, PickledTensor> read_pickled_tensors(const std::string& source, std::span<const std::byte> bytes);

}  // namespace support
