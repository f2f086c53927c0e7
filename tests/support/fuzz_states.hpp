// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "support/fuzz.hpp"

/// What random calls of any mixer are made of: how inputs lie in memory, how tokens are divided into sequences, which slots
/// the sequences use, and how outputs are compared.
namespace jrt::test {

/// What one call, or one sequence so far, has as inputs: tensors of equally many tokens.
template <class E>
using Inputs = std::vector<Tensor<E>>;

template <class E>
Inputs<E> joined_tokens(const Inputs<E>& a, const Inputs<E>& b) {
  Inputs<E> both;
  for (std::size_t i = 0; i < a.size(); ++i) {
    both.push_back(joined_tokens(a[i], b[i]));
  }
  return both;
}

/// Tokens [first, first + count) of row `row` alone.
template <class E>
Inputs<E> row_slice(const Inputs<E>& from, std::int64_t row, std::int64_t first, std::int64_t count) {
  Inputs<E> slice;
  for (const Tensor<E>& tensor : from) {
    slice.push_back(token_slice(batch_slice(tensor, row), first, count));
  }
  return slice;
}

/// 0 … count−1 in any order.
inline std::vector<std::int32_t> shuffled(Random& random, std::int64_t count) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  for (std::int64_t i = count - 1; i > 0; --i) {
    std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(random.between(0, i))]);
  }
  return order;
}

inline bool counts_up(const std::vector<std::int32_t>& list) {
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (list[i] != static_cast<std::int32_t>(i)) {
      return false;
    }
  }
  return true;
}

template <class T>
void describe(std::ostream& to, const char* name, const std::vector<T>& list) {
  to << ' ' << name << '[';
  for (const T& entry : list) {
    to << ' ' << std::int64_t{entry};
  }
  to << " ]";
}
inline void describe(std::ostream& to, const char* name, const Placement& placement) {
  to << ' ' << name << '(' << placement.offset << ", " << placement.batch_stride << ", " << placement.token_stride << ", "
     << placement.head_stride << ')';
}

/// Dimensions in any order, with gaps or without; `aligned`: all rows at addresses that allow wide accesses.
inline Placement random_placement(Random& random, const TensorShape& shape, bool aligned) {
  const std::int64_t granule = aligned || random.chance(0.5) ? aligned_offset : 1;
  Placement placement;
  placement.offset = aligned_offset + granule * random.between(0, 3);
  std::int64_t* const strides[] = {&placement.head_stride, &placement.token_stride, &placement.batch_stride};
  const std::int64_t extents[] = {shape.heads, shape.tokens, shape.batch};
  std::vector<std::int32_t> order{0, 1, 2};
  if (random.chance(0.5)) {
    order = shuffled(random, 3);
  }
  std::int64_t covered = (shape.dim + granule - 1) / granule * granule;
  for (const std::int32_t i : order) {
    const std::int64_t gap = random.chance(0.4) ? granule * random.between(1, 3) : 0;
    *strides[i] = covered + gap;
    covered = *strides[i] * std::max<std::int64_t>(extents[i], 1);
    if (extents[i] <= 1 && random.chance(0.3)) {
      *strides[i] = granule * random.between(0, 50);  // of a single element any stride will do
    }
  }
  return placement;
}

/// The inputs of a call, each by itself or all of them parts of one projection.
template <class Backend, class E>
class PlacedInputs {
 public:
  PlacedInputs(Random& random, const Inputs<E>& inputs, bool aligned, std::ostream& log) {
    const bool same_dim = std::all_of(inputs.begin(), inputs.end(),
                                      [&](const Tensor<E>& tensor) { return tensor.shape.dim == inputs[0].shape.dim; });
    if (same_dim && random.chance(0.3)) {
      place(random, joined_heads(inputs), aligned, "all", log);
      std::int64_t first = 0;
      for (const Tensor<E>& tensor : inputs) {
        views_.push_back(placed_[0].view().slice_heads(first, tensor.shape.heads));
        first += tensor.shape.heads;
      }
    } else {
      placed_.reserve(inputs.size());
      for (const Tensor<E>& tensor : inputs) {
        place(random, tensor, aligned, "input", log);
        views_.push_back(placed_.back().view());
      }
    }
  }

  const std::vector<TensorView<E>>& views() const { return views_; }

 private:
  void place(Random& random, const Tensor<E>& tensor, bool aligned, const char* name, std::ostream& log) {
    const Placement placement = random_placement(random, tensor.shape, aligned);
    describe(log, name, placement);
    placed_.emplace_back(tensor, placement);
  }

  static Tensor<E> joined_heads(const Inputs<E>& inputs) {
    Tensor<E> joined{inputs[0].shape, {}};
    joined.shape.heads = 0;
    for (const Tensor<E>& tensor : inputs) {
      joined.shape.heads += tensor.shape.heads;
    }
    for (std::int64_t b = 0; b < joined.shape.batch; ++b) {
      for (std::int64_t t = 0; t < joined.shape.tokens; ++t) {
        for (const Tensor<E>& tensor : inputs) {
          const E* const begin = tensor.values.data() + tensor.index(b, t, 0, 0);
          joined.values.insert(joined.values.end(), begin, begin + tensor.shape.heads * tensor.shape.dim);
        }
      }
    }
    return joined;
  }

  std::vector<Placed<Backend, E>> placed_;
  std::vector<TensorView<E>> views_;
};

/// Where a sequence is in the views of a call.
struct Part {
  std::int64_t row = 0;
  std::int64_t begin = 0;  // of the rows that are nobody else's, padding included
  std::int64_t end = 0;
  std::int64_t first = 0;  // of its tokens
  std::int64_t tokens = 0;
};

/// The extents of a call's views and how sequences lie in them.
struct Batch {
  std::int64_t rows = 1;
  std::int64_t tokens = 0;
  SequenceLists lists;
  std::vector<Part> parts;

  [[nodiscard]] std::int64_t count() const { return static_cast<std::int64_t>(parts.size()); }
};

/// Full rows: the only form that steps have.
inline Batch full_rows(std::int64_t rows, std::int64_t tokens) {
  Batch batch{rows, tokens, {}, {}};
  for (std::int64_t b = 0; b < rows; ++b) {
    batch.parts.push_back({b, 0, tokens, 0, tokens});
  }
  return batch;
}

inline constexpr std::int64_t max_sequences = 5;

/// Packed sequences, perhaps with rows of nobody around them, or a dense batch; with padding or without.
inline Batch random_batch(Random& random, std::int64_t max_tokens) {
  const auto as_int = [](std::int64_t number) { return static_cast<std::int32_t>(number); };
  const std::int64_t count = random.between(1, max_sequences);
  const bool pads = random.chance(0.4);
  const auto random_pad = [&](std::int64_t tokens) {
    return pads && random.chance(0.7) ? random.between(0, tokens) : std::int64_t{0};
  };
  Batch batch;
  SequenceLists& lists = batch.lists;
  if (random.chance(0.4)) {
    lists.count = count;
    lists.cu_seqlens = {random.chance(0.2) ? as_int(random.between(1, 3)) : 0};
    for (std::int64_t b = 0; b < count; ++b) {
      const std::int64_t tokens = random_length(random, max_tokens / 2);
      const std::int64_t pad = random_pad(tokens);
      const std::int64_t begin = lists.cu_seqlens.back();
      batch.parts.push_back({0, begin, begin + tokens, begin + pad, tokens - pad});
      lists.cu_seqlens.push_back(as_int(begin + tokens));
    }
    batch.tokens = lists.cu_seqlens.back() + (random.chance(0.2) ? random.between(1, 3) : 0);
  } else {
    batch.rows = count;
    batch.tokens = random_length(random, max_tokens);
    const bool lengths = random.chance(0.4);
    for (std::int64_t b = 0; b < count; ++b) {
      const std::int64_t tokens = lengths ? random.between(0, batch.tokens) : batch.tokens;
      const std::int64_t pad = random_pad(tokens);
      batch.parts.push_back({b, 0, batch.tokens, pad, tokens - pad});
      if (lengths) {
        lists.seq_lens.push_back(as_int(tokens));
      }
    }
  }
  for (const Part& part : batch.parts) {
    if (pads) {
      lists.left_pads.push_back(as_int(part.first - part.begin));
    }
  }
  if (random.chance(0.2)) {
    // Mean nothing here, so anything will do.
    lists.prefix_lens.assign(batch.parts.size(), -5);
    lists.first_positions.assign(batch.parts.size(), 77);
  }
  return batch;
}

/// Which slots the sequences of a call read and write.
struct SlotPlan {
  bool reads = true;   ///< there are initial states
  bool writes = true;  ///< there are final states
  std::vector<std::int32_t> from;
  std::vector<std::int32_t> to;
  std::vector<std::uint8_t> has_initial;  ///< empty: all have

  [[nodiscard]] bool starts_empty(std::size_t b) const { return !reads || (!has_initial.empty() && has_initial[b] == 0); }
  [[nodiscard]] bool skipped(std::size_t b) const {
    return (!starts_empty(b) && from[b] == skip_slot) || (writes && to[b] == skip_slot);
  }
};

/// Slots for `count` sequences of a pool, in which `known` says which slots hold something; in order or not. What is read
/// and does not hold anything begins anew if it may, and is skipped otherwise. Where states are written apart, two
/// sequences may read one.
inline SlotPlan random_slots(Random& random, const std::vector<bool>& known, std::int64_t count, bool in_place,
                             bool may_begin_anew) {
  const auto slots = static_cast<std::int64_t>(known.size());
  SlotPlan plan;
  std::vector<std::int32_t> order = shuffled(random, slots);
  if (random.chance(0.3)) {
    std::sort(order.begin(), order.end());
  } else if (random.chance(0.8)) {
    // Mostly what holds something is read.
    std::stable_partition(order.begin(), order.end(),
                          [&](std::int32_t slot) { return known[static_cast<std::size_t>(slot)] == in_place; });
  }
  const bool ordered_reads = !in_place && 2 * count <= slots && random.chance(0.3);
  for (std::int64_t b = 0; b < count; ++b) {
    const std::int32_t slot = order[static_cast<std::size_t>(b)];
    if (ordered_reads) {
      plan.from.push_back(slot);
      plan.to.push_back(order[static_cast<std::size_t>(count + b)]);
    } else {
      plan.from.push_back(in_place ? slot : order[static_cast<std::size_t>(random.between(count, slots - 1))]);
      plan.to.push_back(slot);
    }
  }
  const bool skips = random.chance(0.3);
  const bool some_anew = may_begin_anew && random.chance(0.3);
  plan.has_initial.assign(plan.from.size(), 1);
  for (std::size_t b = 0; b < plan.from.size(); ++b) {
    const bool is_known = known[static_cast<std::size_t>(plan.from[b])];
    if (may_begin_anew && (!is_known || (some_anew && random.chance(0.5)))) {
      plan.has_initial[b] = 0;
      if (random.chance(0.3)) {
        plan.from[b] = random.chance(0.5) ? skip_slot : 1 << 20;  // not looked at
      }
    } else if (!is_known) {
      plan.from[b] = skip_slot;
    }
    if (skips && random.chance(0.3)) {
      const std::int64_t which = random.between(0, 2);
      plan.from[b] = which == 0 ? plan.from[b] : skip_slot;
      plan.to[b] = which == 1 ? plan.to[b] : skip_slot;
    }
  }
  const bool all = std::count(plan.has_initial.begin(), plan.has_initial.end(), 1) == count;
  if (all && (!may_begin_anew || random.chance(0.5))) {
    plan.has_initial.clear();
  }
  return plan;
}

inline void describe(std::ostream& to, const Batch& batch, const SlotPlan& plan) {
  to << ' ' << batch.rows << " rows of " << batch.tokens;
  describe(to, "cu_seqlens", batch.lists.cu_seqlens);
  describe(to, "seq_lens", batch.lists.seq_lens);
  describe(to, "left_pads", batch.lists.left_pads);
  to << (plan.reads ? "" : ", reads nothing") << (plan.writes ? "" : ", writes nothing");
  describe(to, "from", plan.from);
  describe(to, "to", plan.to);
  describe(to, "has_initial", plan.has_initial);
}

/// ‖y − y64‖ and ‖y64‖ over all outputs of a case: the bound means nothing for one number, which may be as good as 0.
class ErrorSum {
 public:
  /// The outputs of one call. Rows of which not a number is expected belong to nobody and must be as they were, rows of 0
  /// must be 0. Gives the first row that is not as it must be or far off, which the norm over many would hide.
  template <class E>
  std::string add(const Tensor<E>& output, const Tensor<double>& expected, double tolerance) {
    const auto dim = static_cast<std::size_t>(expected.shape.dim);
    double call_difference = 0;
    double call_norm = 0;
    std::vector<double> differences;
    std::vector<double> norms;
    std::int64_t tokens = 0;
    std::string wrong;
    for (std::size_t at = 0; at < expected.values.size(); at += dim) {
      double difference = 0;
      double norm = 0;
      bool intact = true;
      for (std::size_t i = at; i < at + dim; ++i) {
        const E untouched = poison<E>();
        intact = intact && std::memcmp(&output.values[i], &untouched, sizeof untouched) == 0;
        const double distance = convert<double>(output.values[i]) - expected.values[i];
        difference += distance * distance;
        norm += expected.values[i] * expected.values[i];
      }
      const bool nobodys = std::isnan(norm);
      differences.push_back(nobodys ? 0 : difference);
      norms.push_back(nobodys ? 0 : norm);
      if (nobodys ? !intact : (norm == 0 && difference != 0)) {
        wrong = wrong.empty() ? row_name(expected.shape, at / dim) + (nobodys ? "is nobody's" : "should be 0") : wrong;
      } else if (!nobodys && norm > 0) {
        call_difference += difference;
        call_norm += norm;
        ++tokens;
      }
    }
    const double usual = tokens == 0 ? 0 : call_norm / static_cast<double>(tokens);
    for (std::size_t i = 0; i < norms.size() && wrong.empty(); ++i) {
      const double bound = 10 * tolerance * std::sqrt(std::max(norms[i], usual));
      if (norms[i] > 0 && !(std::sqrt(differences[i]) <= bound)) {
        wrong = row_name(expected.shape, i) + "is off by " + std::to_string(std::sqrt(differences[i] / norms[i]));
      }
    }
    difference_ += call_difference;
    norm_ += call_norm;
    rows_ += tokens;
    return wrong;
  }

  [[nodiscard]] double relative() const { return norm_ == 0 ? std::sqrt(difference_) : std::sqrt(difference_ / norm_); }
  [[nodiscard]] std::int64_t rows() const { return rows_; }

 private:
  static std::string row_name(const TensorShape& shape, std::size_t row) {
    const auto at = static_cast<std::int64_t>(row);
    std::ostringstream name;
    name << "row " << at / shape.heads / shape.tokens << ", token " << at / shape.heads % shape.tokens << ", head "
         << at % shape.heads << ' ';
    return name.str();
  }

  double difference_ = 0;
  double norm_ = 0;
  std::int64_t rows_ = 0;
};

}  // namespace jrt::test
