// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/cpu.hpp>
#include <jrt/thread_pool.hpp>
#include <vector>

#include "support/tensor.hpp"

namespace jrt::test {

/// Whether tensors of this layout are read by the code that reads aligned ones.
template <class Config>
bool same_kernels_as_aligned(Layout /*layout*/) {
  return true;
}

/// Host memory, filled from and read back as a vector.
template <class T>
class HostArray {
 public:
  HostArray() = default;
  explicit HostArray(std::vector<T> values) : values_(std::move(values)) {}

  T* data() { return values_.data(); }
  [[nodiscard]] std::vector<T> read() const { return values_; }

 private:
  std::vector<T> values_;
};

/// Outputs of a step do not depend on the type that the state is stored in, to the bit.
inline constexpr bool same_sums_for_all_state_types = true;

/// The calling thread.
struct Simple {
  static constexpr bool host_reads_arrays = true;
  template <class T>
  using Array = HostArray<T>;

  static Cpu<SerialExecutor> execution() { return {}; }
  static std::int64_t workers() { return 1; }
};

/// Three threads: a number that divides neither heads nor segments evenly.
struct Concurrent {
  static constexpr bool host_reads_arrays = true;
  template <class T>
  using Array = HostArray<T>;

  static Cpu<ThreadPool> execution() {
    static ThreadPool pool(3);
    return Cpu{pool};
  }
  static std::int64_t workers() { return 3; }
};

/// Lengths at which something ends: rows of a tile, chunks, packets.
inline std::vector<std::int64_t> edge_lengths() {
  constexpr std::int64_t rows = detail::cpu::tile_rows;
  constexpr std::int64_t chunk = detail::cpu::chunk_tokens;
  return {0,
          1,
          2,
          rows - 1,
          rows,
          rows + 1,
          15,
          16,
          17,
          chunk - 1,
          chunk,
          chunk + 1,
          chunk + rows - 1,
          2 * chunk - 1,
          2 * chunk,
          2 * chunk + 1,
          127,
          200};
}

}  // namespace jrt::test
