// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/safetensors.hpp"

namespace support {

/// Queries, keys and values of a prompt and the tokens decoded after it, the encoder's keys and values of its prefix, and
/// the outputs expected for all; (batch, head, token, dim) with d = 16, dv = 64.
struct PromptData {
  std::int64_t batch = 1;
  std::int64_t heads = 1;
  std::int64_t prompt = 0;
  std::int64_t steps = 5;
  std::int64_t prefix = 0;
  std::vector<double> query{};
  std::vector<double> key{};
  std::vector<double> value{};
  std::vector<double> key_encoder{};
  std::vector<double> value_encoder{};
  std::vector<double> expected{};
};

/// A golden file of the authors' implementation.
inline PromptData read_prompt_data(const std::string& path) {
  const SafeTensors file(path);
  const auto numbers = [&](const char* name) { return file.tensor(name).as<double>(); };
  PromptData data;
  const auto& shape = file.tensor("q").shape;
  const auto& value_shape = file.tensor("v").shape;
  if (shape.size() != 4 || shape[3] != 16 || value_shape.size() != 4 || value_shape[3] != 64) {
    throw std::runtime_error(path + ": q and v must be (batch, head, token, 16) and (batch, head, token, 64)");
  }
  data.batch = shape[0];
  data.heads = shape[1];
  data.prompt = file.number("prompt");
  data.steps = file.number("steps");
  data.prefix = file.tensor("k_enc").shape.at(2);
  data.query = numbers("q");
  data.key = numbers("k");
  data.value = numbers("v");
  data.key_encoder = numbers("k_enc");
  data.value_encoder = numbers("v_enc");
  const auto y = numbers("y");
  const auto y_steps = numbers("y_steps");
  for (std::int64_t head = 0; head < data.batch * data.heads; ++head) {
    const auto append = [&](const std::vector<double>& from, std::int64_t tokens) {
      data.expected.insert(data.expected.end(), from.begin() + head * tokens * 64, from.begin() + (head + 1) * tokens * 64);
    };
    append(y, data.prompt);
    append(y_steps, data.steps);
  }
  return data;
}

/// Random numbers that float32 holds exactly; nothing expected yet.
inline PromptData random_prompt_data(std::int64_t tokens, std::int64_t heads) {
  if (tokens < 1 || heads < 1) {
    throw std::runtime_error("there are " + std::to_string(tokens) + " tokens and " + std::to_string(heads) +
                             " heads, but both must be at least 1");
  }
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  const auto numbers = [&](std::int64_t rows, std::int64_t dim) {
    std::vector<double> values(static_cast<std::size_t>(rows * heads * dim));
    for (double& x : values) {
      x = static_cast<double>(normal(generator));
    }
    return values;
  };
  PromptData data;
  data.heads = heads;
  data.prompt = tokens;
  data.prefix = tokens / 2;
  data.query = numbers(tokens + data.steps, 16);
  data.key = numbers(tokens + data.steps, 16);
  data.value = numbers(tokens + data.steps, 64);
  data.key_encoder = numbers(data.prefix, 16);
  data.value_encoder = numbers(data.prefix, 64);
  return data;
}

/// ‖a − b‖ / ‖b‖
inline double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += (a.at(i) - b[i]) * (a.at(i) - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace support
