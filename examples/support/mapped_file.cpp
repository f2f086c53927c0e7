// SPDX-License-Identifier: Apache-2.0
#include "support/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace support {

namespace {

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw std::runtime_error(path + ": " + what + " (" + std::generic_category().message(errno) + ")");
}

struct Descriptor {
  int number;
  explicit Descriptor(const std::string& path)
      // Not blocking: a named pipe would wait for its writer.
      : number(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (number < 0) {
      fail(path, "cannot be opened");
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(number); }
};

}  // namespace

// After the other constructor the destructor runs, also if this one throws.
MappedFile::MappedFile(const std::string& path) : MappedFile() {
  const Descriptor file(path);
  struct stat status {};
  if (::fstat(file.number, &status) != 0) {
    fail(path, "cannot be examined");
  }
  if (!S_ISREG(status.st_mode)) {
    throw std::runtime_error(path + ": is not a file");
  }
  // An empty mapping is an error to the system, an empty file is none.
  if (status.st_size > 0) {
    const auto size = static_cast<std::size_t>(status.st_size);
    void* const begin = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number, 0);
    if (begin == MAP_FAILED) {
      fail(path, "cannot be mapped into memory");
    }
    begin_ = begin;
    size_ = size;
  }
  if (text().starts_with("version https://git-lfs.github.com/spec/")) {
    throw std::runtime_error(path + ": is a Git LFS pointer of " + std::to_string(size_) +
                             " bytes in place of the file; `git lfs pull` in its repository fetches the file itself");
  }
}

void MappedFile::release(std::span<const std::byte> part) const {
  // Whole pages inside the part; the mapping begins at the beginning of a page.
  auto* const begin = static_cast<std::byte*>(begin_);
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const auto offset = static_cast<std::size_t>(part.data() - begin);
  const std::size_t first = (offset + page - 1) / page * page;
  const std::size_t last = (offset + part.size()) / page * page;
  if (first < last) {
    // Only advice: whether the system follows it changes nothing but how much memory is taken.
    static_cast<void>(::madvise(begin + first, last - first, MADV_DONTNEED));
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : begin_(std::exchange(other.begin_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(begin_, other.begin_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (begin_ != nullptr) {
    ::munmap(begin_, size_);
  }
}

}  // namespace support
