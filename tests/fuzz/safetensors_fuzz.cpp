// SPDX-License-Identifier: Apache-2.0
// libFuzzer: whatever the bytes of a safetensors file are, they are refused with std::runtime_error or all readable.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "support/safetensors.hpp"

namespace {

void require(bool condition) {
  if (!condition) {
    __builtin_trap();
  }
}

void read_all(const support::SafeTensors& file) {
  std::size_t bytes = 0;
  for (const std::string& name : file.names()) {
    require(file.contains(name));
    const support::StoredTensor& tensor = file.tensor(name);
    const auto count = static_cast<std::size_t>(tensor.size());
    require(count * support::width_of_dtype(tensor.dtype) == tensor.bytes.size());
    for (const std::byte byte : tensor.bytes) {
      volatile std::byte seen = byte;
      static_cast<void>(seen);
    }
    require(tensor.as<double>().size() == count);
    require(tensor.as<float>().size() == count);
    require(tensor.as<jrt::Half>().size() == count);
    require(tensor.as<jrt::BFloat16>().size() == count);
    const bool integers = tensor.dtype[0] == 'I' || tensor.dtype[0] == 'U';
    try {
      require(tensor.as<std::int64_t>().size() == count && integers);
    } catch (const std::runtime_error&) {
      require(!integers);
    }
    bytes += tensor.bytes.size();
  }
  require(bytes <= 1u << 20);
}

void open(std::span<const std::byte> bytes) {
  try {
    read_all(support::SafeTensors::from_memory("fuzz", bytes));
  } catch (const std::runtime_error& error) {
    const std::string_view message(error.what());
    require(message.starts_with("fuzz: ") && message.size() < 2000 && message.find('\n') == std::string_view::npos);
  }
}

/// A copy of exactly its size, so that AddressSanitizer sees a read beyond its end.
void open_copy(std::string_view bytes) {
  const auto copy = std::make_unique<std::byte[]>(bytes.size());
  std::memcpy(copy.get(), bytes.data(), bytes.size());
  open({copy.get(), bytes.size()});
}

}  // namespace

// The name is libFuzzer's. NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  open_copy(input);
  // Text up to a NUL also as a header whose length is right, which mutations of the length seldom find; the rest is data.
  if (input.starts_with('{')) {
    const std::string_view header = input.substr(0, input.find('\0'));
    const std::string_view rest = input.substr(std::min(header.size() + 1, input.size()));
    const std::uint64_t header_bytes = header.size();
    std::string file(sizeof header_bytes, '\0');
    std::memcpy(file.data(), &header_bytes, sizeof header_bytes);
    open_copy(file.append(header).append(rest));
  }
  return 0;
}
