// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <jrt/backward.hpp>
#include <jrt/mixer/linear_attention.hpp>
#include <jrt/prefill.hpp>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>
#include <vector>

/// One layer of prefix linear attention learns to recall facts, for any backend.
namespace support {

/// The operator, chosen at compile time: float, d = dv = 16; everything else as published for JRT-RNN.
using RecallAttention = jrt::PrefixLinearAttention<float, 16, 16>;

/// A table of one learned vector for each symbol, with Adam's averages (arXiv 1412.6980).
class Embedding {
 public:
  Embedding(int symbols, std::mt19937& random)
      : numbers(static_cast<std::size_t>(symbols) * 16), gradient(numbers.size()), mean_(numbers), square_(numbers) {
    std::normal_distribution<float> normal(0, 0.5F);
    std::generate(numbers.begin(), numbers.end(), [&] { return normal(random); });
  }

  [[nodiscard]] float* row(int symbol) { return numbers.data() + std::ptrdiff_t{symbol} * 16; }
  void add_gradient(int symbol, const float* from) {
    for (std::size_t i = 0; i < 16; ++i) {
      gradient[static_cast<std::size_t>(symbol) * 16 + i] += from[i];
    }
  }
  /// One step of Adam, number `step` from 1; clears the gradient.
  void learn(int step, float rate) {
    const auto unbias = [&](float beta) { return 1 - std::pow(beta, static_cast<float>(step)); };
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      mean_[i] = 0.9F * mean_[i] + 0.1F * gradient[i];
      square_[i] = 0.99F * square_[i] + 0.01F * gradient[i] * gradient[i];
      numbers[i] -= rate * (mean_[i] / unbias(0.9F)) / (std::sqrt(square_[i] / unbias(0.99F)) + 1e-8F);
      gradient[i] = 0;
    }
  }

  std::vector<float> numbers;
  std::vector<float> gradient;

 private:
  std::vector<float> mean_ = std::vector<float>(numbers.size());
  std::vector<float> square_ = std::vector<float>(numbers.size());
};

/// Sequences of `facts` pairs (key, value). At token i the question is the value of any key, often one that comes later:
/// only the encoder region, in which every query sees all facts, can tell. A guess costs ln(`symbols`).
class RecallTraining {
 public:
  static constexpr int batch = 32, facts = 8, symbols = 16;

  explicit RecallTraining(unsigned seed) : random_(seed) {}

  /// One training step on `Place` (see attention_run.hpp); the mean loss before it.
  template <class Place>
  double step() {
    using Array = typename Place::template Array<float>;
    constexpr jrt::TensorShape shape{.batch = batch, .tokens = facts, .heads = 1, .dim = 16};
    draw();
    Array q(rows(query_, questions_)), k(rows(key_, keys_)), v(rows(value_, values_));
    Array k_enc(rows(key_encoder_, keys_)), v_enc(rows(value_encoder_, values_));
    const std::vector<float> nothing(batch * facts * 16);
    Array y(nothing), n(nothing), dq(nothing), dk(nothing), dv(nothing), dk_enc(nothing), dv_enc(nothing);
    const auto view = [&](Array& array) { return jrt::view_bthd(array.data(), shape); };

    // Forward. The denominators are what backward needs besides inputs and outputs.
    jrt::PrefillArgs<RecallAttention> forward;
    forward.query = view(q), forward.key = view(k), forward.value = view(v);
    forward.key_encoder = view(k_enc), forward.value_encoder = view(v_enc);
    forward.output = view(y);
    forward.denominators = jrt::view_bthd(n.data(), {.batch = batch, .tokens = facts, .heads = 1, .dim = 1});
    check(jrt::prefill(forward, Place::execution()));
    const double loss = judge(y.read());

    jrt::BackwardArgs<RecallAttention> backward;
    backward.query = forward.query, backward.key = forward.key, backward.value = forward.value;
    backward.key_encoder = forward.key_encoder, backward.value_encoder = forward.value_encoder;
    backward.output = forward.output, backward.denominators = forward.denominators;
    Array dy(output_gradient_);
    backward.output_gradient = view(dy);
    backward.query_gradient = view(dq), backward.key_gradient = view(dk), backward.value_gradient = view(dv);
    backward.key_encoder_gradient = view(dk_enc), backward.value_encoder_gradient = view(dv_enc);
    check(jrt::backward(backward, Place::execution()));

    learn(query_, questions_, dq.read()), learn(key_, keys_, dk.read()), learn(value_, values_, dv.read());
    learn(key_encoder_, keys_, dk_enc.read()), learn(value_encoder_, values_, dv_enc.read());
    answer_.learn(step_, rate);
    return loss;
  }

 private:
  static constexpr float rate = 0.02F;

  static void check(const jrt::Status& status) {
    if (!status) {
      throw std::runtime_error(status.c_str());
    }
  }

  /// A new batch: distinct keys, any values, and a question at each token.
  void draw() {
    ++step_;
    std::vector<int> shuffled(symbols);
    std::iota(shuffled.begin(), shuffled.end(), 0);
    const auto below = [&](int end) { return std::uniform_int_distribution<int>(0, end - 1)(random_); };
    for (std::size_t b = 0; b < batch; ++b) {
      std::shuffle(shuffled.begin(), shuffled.end(), random_);
      for (std::size_t t = 0; t < facts; ++t) {
        keys_[b * facts + t] = shuffled[t];
        values_[b * facts + t] = below(symbols);
      }
      for (std::size_t t = 0; t < facts; ++t) {
        const auto asked = b * facts + static_cast<std::size_t>(below(facts));
        questions_[b * facts + t] = keys_[asked];
        answers_[b * facts + t] = values_[asked];
      }
    }
  }

  static std::vector<float> rows(Embedding& table, const std::vector<int>& which) {
    std::vector<float> result;
    for (const int symbol : which) {
      result.insert(result.end(), table.row(symbol), table.row(symbol) + 16);
    }
    return result;
  }

  void learn(Embedding& table, const std::vector<int>& which, const std::vector<float>& gradients) const {
    for (std::size_t i = 0; i < which.size(); ++i) {
      table.add_gradient(which[i], gradients.data() + i * 16);
    }
    table.learn(step_, rate);
  }

  /// Mean cross entropy of the answers, softmax over y · answer vectors; its gradients for the outputs and those vectors.
  double judge(const std::vector<float>& outputs) {
    double loss = 0;
    output_gradient_.assign(outputs.size(), 0.0F);
    for (std::size_t i = 0; i < answers_.size(); ++i) {
      const float* const y = outputs.data() + i * 16;
      std::vector<float> p(symbols);
      for (int s = 0; s < symbols; ++s) {
        p[static_cast<std::size_t>(s)] = std::exp(std::inner_product(y, y + 16, answer_.row(s), 0.0F));
      }
      const float sum = std::accumulate(p.begin(), p.end(), 0.0F);
      loss -= std::log(p[static_cast<std::size_t>(answers_[i])] / sum);
      for (int s = 0; s < symbols; ++s) {
        const float error = (p[static_cast<std::size_t>(s)] / sum - (s == answers_[i] ? 1.0F : 0.0F)) / (batch * facts);
        std::vector<float> of_answer(y, y + 16);
        for (std::size_t c = 0; c < 16; ++c) {
          output_gradient_[i * 16 + c] += error * answer_.row(s)[c];
          of_answer[c] *= error;
        }
        answer_.add_gradient(s, of_answer.data());
      }
    }
    return loss / (batch * facts);
  }

  std::mt19937 random_;
  int step_ = 0;
  Embedding query_{symbols, random_}, key_{symbols, random_}, value_{symbols, random_};
  Embedding key_encoder_{symbols, random_}, value_encoder_{symbols, random_}, answer_{symbols, random_};
  std::vector<int> keys_ = std::vector<int>(batch * facts), values_ = keys_, questions_ = keys_, answers_ = keys_;
  std::vector<float> output_gradient_;
};

/// The losses of `steps` steps on a GPU; nothing where there is none. In a file of its own, for the CUDA compiler.
std::optional<std::vector<double>> train_on_gpu(int steps, unsigned seed);

}  // namespace support
