// SPDX-License-Identifier: Apache-2.0
// libFuzzer: whatever the bytes of a file of torch.save are, they are refused with std::runtime_error or all readable.
#include "support/torch_file.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "jrt_lm/torch_archive.hpp"

namespace {

void require(bool condition) {
  if (!condition) {
    __builtin_trap();
  }
}

void read_all(const support::TorchFile& file) {
  for (const std::string& name : file.names()) {
    const support::StoredTensor& tensor = file.tensor(name);
    const std::int64_t size = tensor.size();
    require(size >= 0);
    require(size == 0 || !tensor.bytes.empty());
    for (const std::byte byte : tensor.bytes) {
      volatile std::byte seen = byte;
      static_cast<void>(seen);
    }
    if (size > 1 << 16) {  // a view may repeat its numbers more often than there is memory
      double last = 0;
      tensor.copy_to(&last, size - 1, 1);
      continue;
    }
    const auto numbers = tensor.as<double>();
    require(static_cast<std::int64_t>(numbers.size()) == size);
    require(support::same_numbers(tensor, tensor));
    if (size > 0) {
      double last = 0;
      tensor.copy_to(&last, size - 1, 1);
      require(std::memcmp(&last, &numbers.back(), sizeof last) == 0);
    }
  }
}

/// A copy of exactly its size, so that AddressSanitizer sees a read beyond its end.
void open_copy(std::string_view bytes) {
  const auto copy = std::make_unique<std::byte[]>(bytes.size());
  std::memcpy(copy.get(), bytes.data(), bytes.size());
  try {
    read_all(support::TorchFile::from_memory("fuzz", {copy.get(), bytes.size()}));
  } catch (const std::runtime_error& error) {
    const std::string_view message(error.what());
    require(message.starts_with("fuzz: ") && message.size() < 2000 && message.find('\n') == std::string_view::npos);
  }
}

}  // namespace

// The name is libFuzzer's. NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (input.starts_with("PK")) {
    open_copy(input);
  } else {
    // A pickle in an archive that is right, which mutations of whole files seldom are.
    open_copy(jrt_lm::test::torch_file_of(std::string(input), std::string(96, '\x3f')));
  }
  return 0;
}
