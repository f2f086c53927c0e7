// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <jrt/decode.hpp>
#include <vector>

#include "support/tensor.hpp"

namespace jrt::test {

/// A staging buffer that is a range of the heads of a wider one, in a backend's memory, with poison (NaN) everywhere.
template <class Backend, class Config>
class StagingAmongOthers {
 public:
  using E = typename Config::Element;

  StagingAmongOthers(std::int64_t sequences, std::int64_t tokens, std::int64_t heads)
      : whole_{nullptr, sequences, tokens, before + heads + after},
        heads_(heads),
        empty_(whole_.bytes() / sizeof(E), poison<E>()),
        memory_(empty_) {
    whole_.data = memory_.data();
  }

  StagingView<Config> view() { return whole_.slice_heads(before, heads_); }

  /// The rows of the view's heads, one after the other.
  [[nodiscard]] std::vector<E> rows() const {
    std::vector<E> rows;
    for_rows([&](bool own, const E* row) {
      if (own) {
        rows.insert(rows.end(), row, row + row_elements);
      }
    });
    return rows;
  }
  /// Whether no row of the other heads was written.
  [[nodiscard]] bool others_intact() const {
    bool intact = true;
    for_rows([&](bool own, const E* row) {
      intact = intact && (own || std::memcmp(row, empty_.data(), row_elements * sizeof(E)) == 0);
    });
    return intact;
  }

 private:
  // Eight, so that rows of a view of 16-bit numbers are as well aligned as those of the whole.
  static constexpr std::int64_t before = 8;
  static constexpr std::int64_t after = 8;
  static constexpr std::int64_t row_elements = StagingView<Config>::row_elements;

  template <class Function>
  void for_rows(const Function& function) const {
    std::vector<E> memory = memory_.read();
    StagingView<Config> view = whole_;
    view.data = memory.data();
    for (std::int64_t row = 0; row < view.sequences * view.tokens * view.heads; ++row) {
      const std::int64_t head = row % view.heads;
      function(head >= before && head < before + heads_, view.data + row * row_elements);
    }
  }

  StagingView<Config> whole_;
  std::int64_t heads_;
  std::vector<E> empty_;
  typename Backend::template Array<E> memory_;
};

}  // namespace jrt::test
