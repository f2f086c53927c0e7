// SPDX-License-Identifier: Apache-2.0
#include "support/torch_file.hpp"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "support/mapped_file.hpp"
#include "support/pickled_tensors.hpp"
#include "support/strict_json.hpp"
#include "support/zip_archive.hpp"

namespace support {

namespace {

constexpr std::string_view pickle_name = "/data.pkl";
constexpr std::size_t max_pickle_bytes = 100'000'000;  // as for the header of a safetensors file

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

[[noreturn]] void refuse(const std::string& message) {
  throw std::runtime_error(message);
}

/// What a file is that is no zip archive, where its first bytes tell.
void refuse_other_formats(const std::string& path, std::string_view text) {
  // The pickled number 0x1950a86a20f9469cfc6c, with which torch.save began before PyTorch 1.6.
  constexpr std::string_view legacy("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 12);
  if (text.substr(0, 2) == std::string_view("\x80\x02", 2) && text.substr(2, legacy.size()) == legacy) {
    refuse(path +
           ": is in PyTorch's format from before version 1.6, which is no zip archive; torch.save(torch.load(FILE, "
           "weights_only=True), FILE) of a newer PyTorch writes it anew");
  }
  if (!text.starts_with("PK")) {
    refuse(path + ": begins with " + in_quotes(text.substr(0, 4)) +
           ", not as a zip archive, which every file of torch.save is since PyTorch 1.6");
  }
}

/// The folder that all entries lie in; older versions call it "archive", newer ones by the file's name.
std::string folder_of(const std::string& path, const ZipArchive& archive) {
  std::string folder;
  for (const auto& [name, bytes] : archive.entries()) {
    if (name.ends_with(pickle_name) && name.find('/') == name.size() - pickle_name.size()) {
      if (!folder.empty()) {
        refuse(path + ": has two pickles, " + in_quotes(folder + std::string(pickle_name)) + " and " + in_quotes(name));
      }
      folder = name.substr(0, name.size() - pickle_name.size());
    }
  }
  if (folder.empty()) {
    refuse(path + ": is a zip archive without the entry data.pkl of torch.save");
  }
  return folder;
}

/// A tensor's view of its storage, which must lie in the storage's bytes.
StoredTensor tensor_of(const PickledTensor& pickled, const std::string& origin, std::span<const std::byte> storage) {
  StoredTensor tensor;
  tensor.dtype = pickled.dtype;
  tensor.shape = pickled.shape;
  tensor.origin = origin;
  const std::size_t width = width_of_dtype(tensor.dtype);
  if (static_cast<std::uint64_t>(pickled.storage_size) > storage.size() / width) {
    refuse(origin + " lies in a storage of " + std::to_string(pickled.storage_size) + " numbers of " + tensor.dtype +
           ", but the entry data/" + std::string(pickled.storage) + " has " + std::to_string(storage.size()) + " bytes");
  }
  static_cast<void>(checked_bytes(tensor));
  if (tensor.size() == 0) {
    return tensor;
  }
  std::int64_t last = pickled.offset;
  for (std::size_t d = 0; d < tensor.shape.size(); ++d) {
    std::int64_t reach = 0;
    if (__builtin_mul_overflow(tensor.shape[d] - 1, pickled.strides[d], &reach) ||
        __builtin_add_overflow(last, reach, &last)) {
      last = pickled.storage_size;
      break;
    }
    tensor.strides.push_back(tensor.shape[d] == 1 ? 0 : pickled.strides[d]);
  }
  if (last >= pickled.storage_size) {
    refuse(origin + " has the shape " + shape_text(tensor.shape) + ", strides " + shape_text(pickled.strides) +
           " and the offset " + std::to_string(pickled.offset) + ", which leaves its storage of " +
           std::to_string(pickled.storage_size) + " numbers");
  }
  const auto first = static_cast<std::size_t>(pickled.offset);
  tensor.bytes = storage.subspan(first * width, (static_cast<std::size_t>(last) + 1 - first) * width);
  const auto contiguous = contiguous_strides(tensor.shape);
  bool is_contiguous = true;
  for (std::size_t d = 0; d < contiguous.size(); ++d) {
    is_contiguous = is_contiguous && (tensor.shape[d] == 1 || tensor.strides[d] == contiguous[d]);
  }
  if (is_contiguous) {
    tensor.strides.clear();
  }
  return tensor;
}

}  // namespace

TorchFile::TorchFile(const std::string& path) : TensorFile(path, std::make_unique<MappedFile>(path)) {
  read(file_->bytes());
}

TorchFile::TorchFile(std::string name, std::span<const std::byte> bytes) : TensorFile(std::move(name), nullptr) {
  read(bytes);
}

TorchFile TorchFile::from_memory(std::string name, std::span<const std::byte> bytes) {
  return {std::move(name), bytes};
}

void TorchFile::read(std::span<const std::byte> bytes) {
  refuse_other_formats(path_, text_of(bytes));
  const ZipArchive archive(path_, bytes);
  const std::string folder = folder_of(path_, archive);
  if (const auto* const order = archive.find(folder + "/byteorder"); order != nullptr && text_of(*order) != "little") {
    refuse(path_ + ": has numbers of the byte order " + in_quotes(text_of(*order)) + ", but only little can be read");
  }
  const auto pickle = *archive.find(folder + std::string(pickle_name));
  if (pickle.size() > max_pickle_bytes) {
    refuse(path_ + ": has a pickle of " + std::to_string(pickle.size()) + " bytes, but may have at most " +
           std::to_string(max_pickle_bytes));
  }
  const std::string data = folder + "/data/";
  for (const auto& [name, pickled] : read_pickled_tensors(path_ + ": data.pkl", pickle)) {
    const std::string origin = path_ + ": tensor " + in_quotes(name);
    const auto* const storage = archive.find(data + std::string(pickled.storage));
    if (storage == nullptr) {
      refuse(origin + " lies in the entry " + in_quotes("data/" + std::string(pickled.storage)) + ", which is not there");
    }
    tensors_.emplace(name, tensor_of(pickled, origin, *storage));
  }
}

}  // namespace support
