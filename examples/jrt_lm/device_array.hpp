// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace jrt_lm {

/// Memory of a device's for `size()` numbers, zero at first. What the device has for it: `allocate(bytes)`, which gives
/// zeros; `release(memory, bytes)`; `upload(to, from, bytes)` and `download(to, from, bytes)`, which are over when they
/// return.
template <class Device, class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(Device& device, std::int64_t count)
      : device_(&device), count_(count), data_(static_cast<T*>(device.allocate(bytes(count)))) {}
  DeviceArray(DeviceArray&& other) noexcept { swap(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    DeviceArray moved(std::move(other));
    swap(moved);
    return *this;
  }
  ~DeviceArray() {
    if (device_ != nullptr) {
      device_->release(data_, bytes(count_));
    }
  }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::int64_t size() const { return count_; }
  void upload(std::span<const T> values) { device_->upload(data_, values.data(), values.size_bytes()); }
  [[nodiscard]] std::vector<T> download(std::int64_t count) const {
    std::vector<T> values(static_cast<std::size_t>(count));
    device_->download(values.data(), data_, bytes(count));
    return values;
  }

 private:
  static std::size_t bytes(std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(T); }
  void swap(DeviceArray& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(count_, other.count_);
    std::swap(data_, other.data_);
  }

  Device* device_ = nullptr;
  std::int64_t count_ = 0;
  T* data_ = nullptr;
};

}  // namespace jrt_lm
