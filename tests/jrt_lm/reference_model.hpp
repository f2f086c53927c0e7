// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "jrt_lm/model_config.hpp"
#include "jrt_lm/model_tensors.hpp"
#include "jrt_lm/weights.hpp"

/// The model as its formulas say, in double, with all pairs of tokens: what every backend is held against. It shares
/// nothing with the program but the configuration.
namespace jrt_lm::test {

using Numbers = std::vector<double>;

/// Weights that are float32 numbers, large enough that every part of the model matters.
class TestWeights : public WeightSourceOf<TestWeights> {
 public:
  explicit TestWeights(const ModelConfig& config) {
    std::mt19937 generator(7);
    for (const TensorSpec& tensor : tensors_of(config)) {
      std::size_t size = 1;
      for (const std::int64_t extent : tensor.shape) {
        size *= static_cast<std::size_t>(extent);
      }
      const bool norm = tensor.name.find("norm") != std::string::npos || tensor.name.find("ln_f") != std::string::npos;
      const bool matrix = tensor.shape.size() == 2;
      const double scale = matrix ? 1 / std::sqrt(static_cast<double>(tensor.shape[1])) : 0.5;
      Numbers& numbers = tensors_[tensor.name];
      for (std::size_t i = 0; i < size; ++i) {
        const double number = (static_cast<double>(generator()) * 0x1p-32 - 0.5) * 3.4 * scale;
        numbers.push_back(static_cast<double>(static_cast<float>(norm ? 1 + 0.2 * number : number)));
      }
    }
  }

  template <class T>
  void fill(const TensorSpec& tensor, T* to) const {
    for (const double number : tensors_.at(tensor.name)) {
      *to++ = jrt::convert<T>(number);
    }
  }
  [[nodiscard]] const Numbers* find(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second;
  }

 private:
  std::map<std::string, Numbers> tensors_;
};

/// Those weights with some numbers of one tensor replaced.
class SpoiltWeights : public WeightSourceOf<SpoiltWeights> {
 public:
  SpoiltWeights(const ModelConfig& config, std::string tensor, std::int64_t first, std::int64_t count, double number)
      : weights_(config), tensor_(std::move(tensor)), first_(first), count_(count), number_(number) {}

  template <class T>
  void fill(const TensorSpec& tensor, T* to) const {
    weights_.fill(tensor, to);
    for (std::int64_t i = 0; tensor.name == tensor_ && i < count_; ++i) {
      to[first_ + i] = jrt::convert<T>(number_);
    }
  }

 private:
  TestWeights weights_;
  std::string tensor_;
  std::int64_t first_;
  std::int64_t count_;
  double number_;
};

class ReferenceModel {
 public:
  ReferenceModel(const ModelConfig& config, const TestWeights& weights) : config_(config), weights_(weights) {}

  /// Logits after every token, (tokens, vocabulary rows). The first `prefix` tokens are the encoder region; of the first
  /// `zero_keys` linear attention sees the keys as 0.
  [[nodiscard]] Numbers logits(const std::vector<std::int32_t>& tokens, std::int64_t prefix,
                               std::int64_t zero_keys = 0) const {
    const auto count = static_cast<std::int64_t>(tokens.size());
    const Numbers& table = *weights_.find("transformer.embeddings.word_embeddings.weight");
    Numbers x;
    for (const std::int32_t token : tokens) {
      x.insert(x.end(), table.begin() + token * config_.width, table.begin() + (token + 1) * config_.width);
    }
    for (std::size_t i = 0; i < config_.layers.size(); ++i) {
      const std::string layer = "transformer.layers." + std::to_string(i) + ".";
      const Numbers normed = norm(x, layer + "norm1.weight");
      Numbers mixed;
      switch (config_.layers[i]) {
        case MixerKind::convolution:
          mixed = convolution(normed, count, layer + "mixer.");
          break;
        case MixerKind::linear:
          mixed = linear(normed, count, prefix, zero_keys, layer + "mixer.");
          break;
        case MixerKind::window:
          mixed = window(normed, count, layer + "mixer.");
          break;
      }
      add(x, projected(mixed, count, layer + "mixer.out_proj"));
      const Numbers inner = projected(norm(x, layer + "norm2.weight"), count, layer + "mlp.fc1");
      Numbers gated;
      for (std::int64_t t = 0; t < count; ++t) {
        for (std::int64_t c = 0; c < config_.hidden; ++c) {
          gated.push_back(at(inner, t, 2 * config_.hidden, c) * silu(at(inner, t, 2 * config_.hidden, config_.hidden + c)));
        }
      }
      add(x, projected(gated, count, layer + "mlp.fc2"));
    }
    return projected(norm(x, "transformer.ln_f.weight"), count, "transformer.embeddings.word_embeddings");
  }

  /// The last row of `logits`.
  [[nodiscard]] Numbers last_logits(const std::vector<std::int32_t>& tokens, std::int64_t prefix,
                                    std::int64_t zero_keys = 0) const {
    const Numbers all = logits(tokens, prefix, zero_keys);
    return {all.end() - config_.vocabulary_rows, all.end()};
  }

 private:
  static double silu(double x) { return x / (1 + std::exp(-x)); }
  static double at(const Numbers& rows, std::int64_t t, std::int64_t columns, std::int64_t c) {
    return rows[static_cast<std::size_t>(t * columns + c)];
  }
  static void add(Numbers& x, const Numbers& y) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] += y[i];
    }
  }

  [[nodiscard]] Numbers norm(const Numbers& x, const std::string& name) const {
    const Numbers& weight = *weights_.find(name);
    const std::size_t width = weight.size();
    Numbers result(x.size());
    for (std::size_t row = 0; row < x.size(); row += width) {
      double squares = 0;
      for (std::size_t c = 0; c < width; ++c) {
        squares += x[row + c] * x[row + c];
      }
      for (std::size_t c = 0; c < width; ++c) {
        result[row + c] = x[row + c] * weight[c] / std::sqrt(squares / static_cast<double>(width) + config_.norm_epsilon);
      }
    }
    return result;
  }

  [[nodiscard]] Numbers projected(const Numbers& x, std::int64_t count, const std::string& name) const {
    const Numbers& weight = *weights_.find(name + ".weight");
    const Numbers* const bias = weights_.find(name + ".bias");
    const auto in = static_cast<std::int64_t>(x.size()) / count;
    const auto out = static_cast<std::int64_t>(weight.size()) / in;
    Numbers y;
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t o = 0; o < out; ++o) {
        double sum = bias == nullptr ? 0 : (*bias)[static_cast<std::size_t>(o)];
        for (std::int64_t c = 0; c < in; ++c) {
          sum += at(x, t, in, c) * at(weight, o, in, c);
        }
        y.push_back(sum);
      }
    }
    return y;
  }

  [[nodiscard]] Numbers convolution(const Numbers& x, std::int64_t count, const std::string& mixer) const {
    const std::int64_t channels = config_.channels;
    const std::int64_t width = config_.shape.kernel_width;
    const Numbers ug = projected(x, count, mixer + "in_proj");
    const Numbers& taps = *weights_.find(mixer + "conv.conv.weight");
    const Numbers* const bias = weights_.find(mixer + "conv.conv.bias");
    Numbers y;
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t c = 0; c < channels; ++c) {
        double sum = bias == nullptr ? 0 : (*bias)[static_cast<std::size_t>(c)];
        for (std::int64_t tap = 0; tap < width; ++tap) {
          const std::int64_t from = t - width + 1 + tap;
          sum += from < 0 ? 0 : at(ug, from, 2 * channels, c) * at(taps, c, width, tap);
        }
        y.push_back(silu(sum) * at(ug, t, 2 * channels, channels + c));
      }
    }
    return y;
  }

  [[nodiscard]] Numbers linear(const Numbers& x, std::int64_t count, std::int64_t prefix, std::int64_t zero_keys,
                               const std::string& mixer) const {
    const std::int64_t d = config_.shape.feature_dim;
    const std::int64_t dv = config_.shape.head_dim;
    const Numbers q = projected(x, count, mixer + "proj_q");
    const Numbers k = projected(x, count, mixer + "proj_k");
    const Numbers v = projected(x, count, mixer + "proj_v");
    const bool encodes = config_.has_encoder && prefix > 0;
    const Numbers k_enc = encodes ? projected(x, count, mixer + "proj_k_enc") : Numbers{};
    const Numbers v_enc = encodes ? projected(x, count, mixer + "proj_v_enc") : Numbers{};
    Numbers y;
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t h = 0; h < config_.heads; ++h) {
        Numbers sum(static_cast<std::size_t>(dv));
        double weights = 0;
        const auto see = [&](const Numbers& keys, const Numbers& values, std::int64_t j) {
          double dot = 0;
          for (std::int64_t c = 0; c < d && j >= zero_keys; ++c) {
            dot += at(q, t, config_.heads * d, h * d + c) * at(keys, j, config_.heads * d, h * d + c);
          }
          const double s = dot / std::sqrt(static_cast<double>(d));
          const double weight = 1 + s + s * s / 2;
          weights += weight;
          for (std::int64_t c = 0; c < dv; ++c) {
            sum[static_cast<std::size_t>(c)] += weight * at(values, j, config_.heads * dv, h * dv + c);
          }
        };
        for (std::int64_t j = 0; j <= t; ++j) {
          see(k, v, j);
        }
        for (std::int64_t j = 0; encodes && j < prefix; ++j) {
          see(k_enc, v_enc, j);
        }
        for (const double number : sum) {
          y.push_back(number / weights);
        }
      }
    }
    return y;
  }

  [[nodiscard]] Numbers window(const Numbers& x, std::int64_t count, const std::string& mixer) const {
    const std::int64_t d = config_.shape.head_dim;
    const std::int64_t groups = config_.heads / config_.window_kv_heads;
    const std::int64_t columns = (config_.heads + 2 * config_.window_kv_heads) * d;
    Numbers qkv = projected(x, count, mixer + "Wqkv");
    for (std::int64_t t = 0; t < count && config_.rotates; ++t) {
      for (std::int64_t h = 0; h < config_.heads + config_.window_kv_heads; ++h) {
        for (std::int64_t i = 0; i < d / 2; ++i) {
          const double angle = static_cast<double>(t) *
                               std::pow(config_.rotary_base, -2.0 * static_cast<double>(i) / static_cast<double>(d));
          double& low = qkv[static_cast<std::size_t>(t * columns + h * d + i)];
          double& high = qkv[static_cast<std::size_t>(t * columns + h * d + i + d / 2)];
          const double rotated = low * std::cos(angle) - high * std::sin(angle);
          high = low * std::sin(angle) + high * std::cos(angle);
          low = rotated;
        }
      }
    }
    Numbers y;
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t h = 0; h < config_.heads; ++h) {
        const std::int64_t key = (config_.heads + h / groups) * d;
        const std::int64_t value = (config_.heads + config_.window_kv_heads + h / groups) * d;
        Numbers sum(static_cast<std::size_t>(d));
        double weights = 0;
        for (std::int64_t j = std::max<std::int64_t>(0, t - config_.shape.left_window); j <= t; ++j) {
          double dot = 0;
          for (std::int64_t c = 0; c < d; ++c) {
            dot += at(qkv, t, columns, h * d + c) * at(qkv, j, columns, key + c);
          }
          const double weight = std::exp(dot * config_.window_scale);
          weights += weight;
          for (std::int64_t c = 0; c < d; ++c) {
            sum[static_cast<std::size_t>(c)] += weight * at(qkv, j, columns, value + c);
          }
        }
        for (const double number : sum) {
          y.push_back(number / weights);
        }
      }
    }
    return y;
  }

  const ModelConfig& config_;
  const TestWeights& weights_;
};

}  // namespace jrt_lm::test
