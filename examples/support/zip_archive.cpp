// SPDX-License-Identifier: Apache-2.0
#include "support/zip_archive.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "support/strict_json.hpp"

namespace support {

namespace {

static_assert(std::endian::native == std::endian::little, "numbers are copied as they lie in the file");

// Records of the format: what they begin with, and their size without the texts that follow.
constexpr std::uint32_t entry_signature = 0x04034b50;
constexpr std::uint32_t directory_signature = 0x02014b50;
constexpr std::uint32_t end_signature = 0x06054b50;
constexpr std::uint32_t end64_signature = 0x06064b50;
constexpr std::uint32_t end64_locator_signature = 0x07064b50;
constexpr std::uint64_t entry_size = 30;
constexpr std::uint64_t directory_size = 46;
constexpr std::uint64_t end_size = 22;
constexpr std::uint64_t end64_size = 56;
constexpr std::uint64_t end64_locator_size = 20;
constexpr std::uint64_t max_comment = 0xffff;
constexpr std::uint16_t zip64_extra = 1;

/// Numbers and parts of the file, which must lie in it.
class Bytes {
 public:
  Bytes(const std::string& name, std::span<const std::byte> bytes) : name_(&name), bytes_(bytes) {}

  [[noreturn]] void fail(const std::string& what) const { throw std::runtime_error(*name_ + ": " + what); }
  [[nodiscard]] std::uint64_t size() const { return bytes_.size(); }

  [[nodiscard]] std::span<const std::byte> part(std::uint64_t at, std::uint64_t size, const char* what) const {
    if (at > bytes_.size() || size > bytes_.size() - at) {
      fail(std::string(what) + " should lie at byte " + std::to_string(at) + " and have " + std::to_string(size) +
           " bytes, but the file has " + std::to_string(bytes_.size()));
    }
    return bytes_.subspan(at, size);
  }
  [[nodiscard]] std::string_view text(std::uint64_t at, std::uint64_t size, const char* what) const {
    const auto bytes = part(at, size, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  template <class Number>
  [[nodiscard]] Number number(std::uint64_t at, const char* what) const {
    Number number;
    std::memcpy(&number, part(at, sizeof number, what).data(), sizeof number);
    return number;
  }

 private:
  const std::string* name_;
  std::span<const std::byte> bytes_;
};

/// Where the central directory lies.
struct Directory {
  std::uint64_t at;
  std::uint64_t size;
  std::uint64_t entries;
};

/// The record at the end of every archive, behind which only a comment may follow.
std::uint64_t find_end(const Bytes& file) {
  const std::uint64_t last = file.size() < end_size ? 0 : file.size() - end_size;
  const std::uint64_t first = last - std::min(last, max_comment);
  for (std::uint64_t at = last + 1; file.size() >= end_size && at-- > first;) {
    if (file.number<std::uint32_t>(at, "a record") == end_signature &&
        file.number<std::uint16_t>(at + 20, "a comment's size") == file.size() - at - end_size) {
      return at;
    }
  }
  file.fail("has no end of a zip archive: the file is cut short, or it is no such archive");
}

Directory find_directory(const Bytes& file) {
  constexpr const char* what = "the end of the archive";
  const std::uint64_t end = find_end(file);
  Directory directory{file.number<std::uint32_t>(end + 16, what), file.number<std::uint32_t>(end + 12, what),
                      file.number<std::uint16_t>(end + 10, what)};
  std::uint64_t limit = end;
  std::uint64_t disks = file.number<std::uint16_t>(end + 4, what);
  if (end >= end64_locator_size && file.number<std::uint32_t>(end - end64_locator_size, what) == end64_locator_signature) {
    limit = file.number<std::uint64_t>(end - end64_locator_size + 8, what);
    static_cast<void>(file.part(limit, end64_size, "the end of the zip64 archive"));
    if (file.number<std::uint32_t>(limit, what) != end64_signature) {
      file.fail("has no end of a zip64 archive at byte " + std::to_string(limit) + ", where one is said to be");
    }
    directory = {file.number<std::uint64_t>(limit + 48, what), file.number<std::uint64_t>(limit + 40, what),
                 file.number<std::uint64_t>(limit + 32, what)};
    disks = file.number<std::uint32_t>(limit + 16, what);
  }
  if (disks != 0) {
    file.fail("is part " + std::to_string(disks + 1) + " of an archive in several files");
  }
  if (directory.at > limit || directory.size > limit - directory.at) {
    file.fail("has a directory of " + std::to_string(directory.size) + " bytes at byte " + std::to_string(directory.at) +
              ", but it must end before byte " + std::to_string(limit));
  }
  return directory;
}

/// An entry as the directory describes it.
struct Entry {
  std::string_view name;
  std::uint64_t at = 0;
  std::uint64_t size = 0;
  std::uint64_t compressed_size = 0;
};

/// Numbers that 32 bits cannot hold, in this order, where the directory has all ones.
void read_zip64(const Bytes& file, std::uint64_t at, std::uint64_t end, Entry& entry) {
  constexpr const char* what = "a zip64 field";
  while (end - at >= 4) {
    const auto id = file.number<std::uint16_t>(at, what);
    const std::uint64_t size = file.number<std::uint16_t>(at + 2, what);
    at += 4;
    if (size > end - at) {
      file.fail("entry " + in_quotes(entry.name) + " has an extra field of " + std::to_string(size) + " bytes, but " +
                std::to_string(end - at) + " are left for it");
    }
    if (id == zip64_extra) {
      const std::uint64_t field_end = at + size;
      for (std::uint64_t* number : {&entry.size, &entry.compressed_size, &entry.at}) {
        if (*number == 0xffffffff && field_end - at >= sizeof *number) {
          *number = file.number<std::uint64_t>(at, what);
          at += sizeof *number;
        }
      }
      return;
    }
    at += size;
  }
}

/// The entry's bytes, behind a header of its own that must agree.
std::span<const std::byte> content(const Bytes& file, const Entry& entry, std::uint64_t directory_at) {
  constexpr const char* what = "an entry's header";
  const std::string name = "entry " + in_quotes(entry.name);
  if (file.number<std::uint32_t>(entry.at, what) != entry_signature) {
    file.fail(name + " should begin at byte " + std::to_string(entry.at) + ", but no entry does");
  }
  const std::uint64_t name_size = file.number<std::uint16_t>(entry.at + 26, what);
  const std::uint64_t extra_size = file.number<std::uint16_t>(entry.at + 28, what);
  if (file.text(entry.at + entry_size, name_size, what) != entry.name) {
    file.fail(name + " has another name in its own header");
  }
  const std::uint64_t begin = entry.at + entry_size + name_size + extra_size;
  if (begin > directory_at || entry.size > directory_at - begin) {
    file.fail(name + " has " + std::to_string(entry.size) + " bytes from byte " + std::to_string(begin) +
              ", but the archive's directory begins at byte " + std::to_string(directory_at));
  }
  return file.part(begin, entry.size, "an entry");
}

}  // namespace

ZipArchive::ZipArchive(const std::string& name, std::span<const std::byte> bytes) {
  constexpr const char* what = "the archive's directory";
  const Bytes file(name, bytes);
  const Directory directory = find_directory(file);
  const std::uint64_t end = directory.at + directory.size;
  std::uint64_t at = directory.at;
  for (std::uint64_t i = 0; i < directory.entries; ++i) {
    if (end - at < directory_size || file.number<std::uint32_t>(at, what) != directory_signature) {
      file.fail("has a directory of " + std::to_string(directory.entries) + " entries, but no entry " + std::to_string(i) +
                " at byte " + std::to_string(at));
    }
    const std::uint64_t name_size = file.number<std::uint16_t>(at + 28, what);
    const std::uint64_t extra_size = file.number<std::uint16_t>(at + 30, what);
    const std::uint64_t comment_size = file.number<std::uint16_t>(at + 32, what);
    const auto flags = file.number<std::uint16_t>(at + 8, what);
    const auto method = file.number<std::uint16_t>(at + 10, what);
    Entry entry;
    entry.compressed_size = file.number<std::uint32_t>(at + 20, what);
    entry.size = file.number<std::uint32_t>(at + 24, what);
    entry.at = file.number<std::uint32_t>(at + 42, what);
    at += directory_size;
    if (name_size + extra_size + comment_size > end - at) {
      file.fail("has a directory that ends at byte " + std::to_string(end) + ", but its entry " + std::to_string(i) +
                " has " + std::to_string(name_size + extra_size + comment_size) + " more bytes at byte " +
                std::to_string(at));
    }
    entry.name = file.text(at, name_size, what);
    read_zip64(file, at + name_size, at + name_size + extra_size, entry);
    at += name_size + extra_size + comment_size;
    const std::string shown = "entry " + in_quotes(entry.name);
    if ((flags & 1) != 0) {
      file.fail(shown + " is encrypted");
    }
    if (method != 0) {
      file.fail(shown + " is compressed (method " + std::to_string(method) +
                "), but only entries that are stored as they " + "are can be read");
    }
    if (entry.compressed_size != entry.size) {
      file.fail(shown + " has " + std::to_string(entry.size) + " bytes, but " + std::to_string(entry.compressed_size) +
                " are stored");
    }
    if (!entries_.emplace(entry.name, content(file, entry, directory.at)).second) {
      file.fail("has " + shown + " twice");
    }
  }
}

const std::span<const std::byte>* ZipArchive::find(std::string_view name) const {
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : &found->second;
}

}  // namespace support
