// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <jrt/mixer/linear_attention.hpp>
#include <jrt/prefill.hpp>
#include <string>
#include <vector>

#include "cuda/check.cuh"
#include "cuda/timing.cuh"

/// One prefill to be timed: its tensors in device memory, its arguments, and where its sequences lie.
namespace jrt::bench {

enum class Layout {
  head_major,       ///< [B,H,T,d]
  token_major,      ///< [B,T,H,d]
  packed_qkv,       ///< [B,T,H·(2d+dv)]: queries, keys and values are slices of one tensor
  variable_length,  ///< [tokens,H,d]: sequences of lengths around T, B·T tokens together, one after the other
};

/// 16 query heads; with the prefix mask the encoder region has half as many tokens as the sequence, rounded down.
struct PrefillCase {
  static constexpr std::int64_t query_heads = 16;

  std::int64_t batch = 1;
  std::int64_t tokens = 0;
  Layout layout = Layout::head_major;
  std::int64_t key_heads = query_heads;
  int spread = 37;          ///< of variable lengths, percent
  bool from_state = false;  ///< the initial state is the final one of an earlier run over the same tokens
  bool graph = false;       ///< timed is the replay of a captured graph

  [[nodiscard]] std::string name() const {
    static constexpr const char* layouts[] = {"", "/token_major", "/packed_qkv", "/variable_length"};
    std::string name = "/B:" + std::to_string(batch) + "/N:" + std::to_string(tokens);
    name += layouts[static_cast<int>(layout)];
    if (layout == Layout::variable_length) {
      name.append(":").append(std::to_string(spread));
    }
    if (key_heads < query_heads) {
      name.append("/key_heads:").append(std::to_string(key_heads));
    }
    name += from_state ? "/initial_state" : "";
    name += graph ? "/graph" : "";
    return name;
  }
};

/// Lengths that differ from `tokens` by up to `spread` percent and are `count * tokens` together; hardly one is a whole
/// number of chunks.
inline std::vector<std::int64_t> lengths_around(std::int64_t tokens, std::int64_t count, int spread) {
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(count), tokens);
  for (std::int64_t pair = 0; pair < count / 2; ++pair) {
    const std::int64_t difference = (37 + 431 * (pair % 8)) * tokens * spread / (8192 * 37);
    lengths[static_cast<std::size_t>(2 * pair)] += difference;
    lengths[static_cast<std::size_t>(2 * pair + 1)] -= difference;
  }
  return lengths;
}

template <class Config>
class PrefillProblem {
 public:
  using E = typename Config::Element;
  using Format = StateFormatOf<Config>;
  static constexpr int d = Config::FeatureMap::input_dim;
  static constexpr int dv = Config::value_dim;

  explicit PrefillProblem(const PrefillCase& problem_case)
      : case_(problem_case),
        initial_states_(case_.from_state ? case_.batch * case_.key_heads * Format::head_elements : 0),
        final_states_(case_.batch * case_.key_heads * Format::head_elements) {
    lay_out_sequences();
    lay_out_tensors();
    output_ = &memory_.emplace_back(total_ * case_.query_heads * dv);
    args_.output = view_of(output_->data(), tokens_of_row_, case_.query_heads, dv);
    args_.final_state = {pool(final_states_)};
    workspace_.emplace_back(static_cast<std::int64_t>(prefill_workspace_bytes(args_, timed_stream())));
  }
  PrefillProblem(const PrefillProblem&) = delete;
  PrefillProblem& operator=(const PrefillProblem&) = delete;

  /// Makes the initial state, where there is one. Before the first call of `enqueue`.
  Status prepare() {
    if (!case_.from_state) {
      return {};
    }
    args_.final_state = {pool(initial_states_)};
    const Status status = enqueue();
    args_.final_state = {pool(final_states_)};
    args_.initial_state = {pool(initial_states_)};
    // Arguments with an initial state may need another workspace.
    workspace_.emplace_back(static_cast<std::int64_t>(prefill_workspace_bytes(args_, timed_stream())));
    return status;
  }

  [[nodiscard]] Status enqueue() const {
    const DeviceArray<std::byte>& workspace = workspace_.back();
    return prefill(args_, {workspace.data(), static_cast<std::size_t>(workspace.size())}, timed_stream());
  }

  void poison() const {
    output_->poison();
    final_states_.poison();
  }

  [[nodiscard]] const PrefillArgs<Config>& args() const { return args_; }
  [[nodiscard]] const std::vector<SequenceExtent>& sequences() const { return sequences_; }
  [[nodiscard]] std::int64_t query_group() const { return case_.query_heads / case_.key_heads; }
  [[nodiscard]] AttentionInputs<E> inputs() const {
    return {args_.query,
            args_.key,
            args_.value,
            args_.key_encoder,
            args_.value_encoder,
            Config::Mask::reads_future,
            case_.from_state ? 1 : 0};
  }

  /// What is kept of all sequences for decoding.
  [[nodiscard]] std::int64_t state_bytes() const { return case_.batch * Format::slot_bytes(case_.key_heads); }
  /// What the call needs on the way.
  [[nodiscard]] std::int64_t workspace_bytes() const { return workspace_.back().size(); }

  /// States do not count as bytes that must move: a few hundredths at the shortest sequences, nothing at others.
  [[nodiscard]] Work work() const {
    const auto all = static_cast<double>(total_);
    const auto encoder = static_cast<double>(total_encoder_);
    const auto query_heads = static_cast<double>(case_.query_heads);
    const auto key_heads = static_cast<double>(case_.key_heads);
    constexpr double update = 2.0 * Format::rows * (dv + 1);
    constexpr double reading = 2.0 * Format::rows * (dv + (Config::Normaliser::uses_denominator ? 1 : 0));
    return {.bytes = sizeof(E) * (d + dv) * (all * (query_heads + key_heads) + encoder * key_heads),
            .operations = all * (query_heads * reading + key_heads * update) + encoder * key_heads * update,
            .tokens = all};
  }

 private:
  void lay_out_sequences() {
    const bool packed = case_.layout == Layout::variable_length;
    std::vector<std::int32_t> offsets{0};
    std::vector<std::int32_t> encoder_offsets{0};
    std::vector<std::int32_t> prefixes;
    std::int64_t longest = 0;
    const auto lengths = packed ? lengths_around(case_.tokens, case_.batch, case_.spread)
                                : std::vector<std::int64_t>(static_cast<std::size_t>(case_.batch), case_.tokens);
    for (const std::int64_t tokens : lengths) {
      const std::int64_t prefix = Config::Mask::reads_encoder ? tokens / 2 : 0;
      const auto row = static_cast<std::int64_t>(sequences_.size());
      sequences_.push_back(packed ? SequenceExtent{0, total_, tokens, total_encoder_, prefix}
                                  : SequenceExtent{row, 0, tokens, 0, prefix});
      total_ += tokens;
      total_encoder_ += prefix;
      longest = std::max(longest, tokens);
      offsets.push_back(static_cast<std::int32_t>(total_));
      encoder_offsets.push_back(static_cast<std::int32_t>(total_encoder_));
      prefixes.push_back(static_cast<std::int32_t>(prefix));
    }
    rows_ = packed ? 1 : case_.batch;
    tokens_of_row_ = total_ / rows_;
    encoder_of_row_ = total_encoder_ / rows_;
    if (packed) {
      args_.sequences.count = case_.batch;
      args_.sequences.cu_seqlens = arrays_.emplace_back(offsets).data();
      args_.sequences.max_tokens = longest;
      if (Config::Mask::reads_encoder) {
        args_.sequences.cu_encoder_seqlens = arrays_.emplace_back(encoder_offsets).data();
        args_.sequences.prefix_lens = arrays_.emplace_back(prefixes).data();
      }
    }
  }

  void lay_out_tensors() {
    const std::int64_t query_heads = case_.query_heads;
    const std::int64_t key_heads = case_.key_heads;
    if (case_.layout == Layout::packed_qkv) {
      const std::int64_t keys = query_heads * d;
      const std::int64_t values = keys + key_heads * d;
      const std::int64_t width = values + key_heads * dv;
      E* const data = random(total_ * width);
      args_.query = slice(data, width, tokens_of_row_, query_heads, d);
      args_.key = slice(data + keys, width, tokens_of_row_, key_heads, d);
      args_.value = slice(data + values, width, tokens_of_row_, key_heads, dv);
      if (total_encoder_ > 0) {
        E* const encoder = random(total_encoder_ * key_heads * (d + dv));
        args_.key_encoder = slice(encoder, key_heads * (d + dv), encoder_of_row_, key_heads, d);
        args_.value_encoder = slice(encoder + key_heads * d, key_heads * (d + dv), encoder_of_row_, key_heads, dv);
      }
      return;
    }
    const auto tensor = [&](std::int64_t tokens, std::int64_t heads, std::int64_t dim) {
      return view_of(random(rows_ * tokens * heads * dim), tokens, heads, dim);
    };
    args_.query = tensor(tokens_of_row_, query_heads, d);
    args_.key = tensor(tokens_of_row_, key_heads, d);
    args_.value = tensor(tokens_of_row_, key_heads, dv);
    if (total_encoder_ > 0) {
      args_.key_encoder = tensor(encoder_of_row_, key_heads, d);
      args_.value_encoder = tensor(encoder_of_row_, key_heads, dv);
    }
  }

  E* random(std::int64_t count) {
    const auto seed = static_cast<unsigned>(memory_.size() + 1);
    return memory_.emplace_back(random_array<E>(count, seed)).data();
  }
  TensorView<E> view_of(E* data, std::int64_t tokens, std::int64_t heads, std::int64_t dim) const {
    const TensorShape shape{rows_, tokens, heads, dim};
    return case_.layout == Layout::head_major ? view_bhtd(data, shape) : view_bthd(data, shape);
  }
  TensorView<E> slice(E* data, std::int64_t width, std::int64_t tokens, std::int64_t heads, std::int64_t dim) const {
    return {data, rows_, tokens, heads, dim, tokens * width, width, dim};
  }
  StatePoolView<Format> pool(const DeviceArray<typename Format::Scalar>& states) const {
    return view_pool<Format>(states.data(), case_.batch, case_.key_heads);
  }

  PrefillCase case_;
  std::int64_t rows_ = 0;
  std::int64_t total_ = 0;  // tokens of all sequences
  std::int64_t total_encoder_ = 0;
  std::int64_t tokens_of_row_ = 0;
  std::int64_t encoder_of_row_ = 0;
  std::vector<SequenceExtent> sequences_;
  std::vector<DeviceArray<std::int32_t>> arrays_;
  std::vector<DeviceArray<E>> memory_;
  const DeviceArray<E>* output_ = nullptr;
  DeviceArray<typename Format::Scalar> initial_states_;
  DeviceArray<typename Format::Scalar> final_states_;
  std::vector<DeviceArray<std::byte>> workspace_;  // the last one is in use
  PrefillArgs<Config> args_;
};

}  // namespace jrt::bench
