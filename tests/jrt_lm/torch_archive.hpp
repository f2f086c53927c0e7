// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// Archives and pickles as tests and fuzzers of their reader need them: also such as PyTorch does not write.
namespace jrt_lm::test {

template <class Number>
std::string little_endian(Number number) {
  std::string bytes(sizeof number, '\0');
  std::memcpy(bytes.data(), &number, sizeof number);
  return bytes;
}

using ArchiveEntries = std::vector<std::pair<std::string, std::string>>;

/// Where an archive differs from an ordinary one.
struct ArchiveOptions {
  bool zip64 = false;  ///< sizes and offsets in 64 bits, as torch.save writes them where a file is large
  std::uint16_t method = 0;
  std::uint16_t flags = 0;
  std::string comment{};
  std::string local_prefix{};  ///< before each name in an entry's own header
};

/// A zip archive of stored entries.
inline std::string archive_of(const ArchiveEntries& entries, const ArchiveOptions& options = {}) {
  const auto small = [&](std::uint64_t number) {
    return little_endian(options.zip64 ? 0xffffffffU : static_cast<std::uint32_t>(number));
  };
  std::string file;
  std::string directory;
  for (const auto& [name, content] : entries) {
    const std::string local_name = options.local_prefix + name;
    // A field of another kind before the 64-bit one: readers must pass over it.
    const std::string extra =
        !options.zip64 ? std::string()
                       : little_endian<std::uint16_t>(0x4246) + little_endian<std::uint16_t>(3) + "ZZZ" +
                             little_endian<std::uint16_t>(1) + little_endian<std::uint16_t>(24) +
                             little_endian<std::uint64_t>(content.size()) + little_endian<std::uint64_t>(content.size()) +
                             little_endian<std::uint64_t>(file.size());
    const std::string common = little_endian(options.flags) + little_endian(options.method) + std::string(8, '\0') +
                               small(content.size()) + small(content.size());
    directory += little_endian(0x02014b50U) + std::string(4, '\0') + common +
                 little_endian(static_cast<std::uint16_t>(name.size())) +
                 little_endian(static_cast<std::uint16_t>(extra.size())) + std::string(10, '\0') + small(file.size()) +
                 name + extra;
    file += little_endian(0x04034b50U) + std::string(2, '\0') + common +
            little_endian(static_cast<std::uint16_t>(local_name.size())) + little_endian<std::uint16_t>(5) + local_name +
            "extra" + content;
  }
  const std::uint64_t directory_at = file.size();
  const std::uint64_t end64_at = directory_at + directory.size();
  file += directory;
  if (options.zip64) {
    file += little_endian(0x06064b50U) + little_endian<std::uint64_t>(44) + std::string(12, '\0') +
            little_endian<std::uint64_t>(entries.size()) + little_endian<std::uint64_t>(entries.size()) +
            little_endian<std::uint64_t>(directory.size()) + little_endian(directory_at);
    file += little_endian(0x07064b50U) + little_endian(0U) + little_endian(end64_at) + little_endian(1U);
  }
  const auto count = little_endian(options.zip64 ? std::uint16_t{0xffff} : static_cast<std::uint16_t>(entries.size()));
  file += little_endian(0x06054b50U) + std::string(4, '\0') + count + count + small(directory.size()) +
          small(directory_at) + little_endian(static_cast<std::uint16_t>(options.comment.size())) + options.comment;
  return file;
}

/// The parts of pickles, in protocol 2.
namespace pickle {

inline std::string text(std::string_view text) {
  return "X" + little_endian(static_cast<std::uint32_t>(text.size())) + std::string(text);
}
inline std::string integer(std::int64_t number) {
  return "\x8a\x08" + little_endian(number);
}
inline std::string tuple(const std::vector<std::int64_t>& numbers) {
  std::string items;
  for (const std::int64_t number : numbers) {
    items += integer(number);
  }
  return "(" + items + "t";
}
inline std::string name(std::string_view module, std::string_view name) {
  return "c" + std::string(module) + "\n" + std::string(name) + "\n";
}
inline std::string storage(std::string_view type, std::string_view key, std::int64_t size) {
  return "(" + text("storage") + name("torch", type) + text(key) + text("cpu") + integer(size) + "tQ";
}
inline std::string tensor(const std::string& storage, std::int64_t offset, const std::vector<std::int64_t>& shape,
                          const std::vector<std::int64_t>& strides) {
  return name("torch._utils", "_rebuild_tensor_v2") + "(" + storage + integer(offset) + tuple(shape) + tuple(strides) +
         "\x89" + name("collections", "OrderedDict") + ")RtR";
}
/// A dictionary of values that are written already.
inline std::string dictionary(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string all = "\x80\x02}(";
  for (const auto& [key, value] : items) {
    all += text(key) + value;
  }
  return all + "u.";
}

}  // namespace pickle

/// A file of torch.save with that pickle and one storage, '0'.
inline std::string torch_file_of(const std::string& pickle, const std::string& storage,
                                 const ArchiveOptions& options = {}) {
  return archive_of({{"archive/data.pkl", pickle}, {"archive/byteorder", "little"}, {"archive/data/0", storage}}, options);
}

}  // namespace jrt_lm::test
