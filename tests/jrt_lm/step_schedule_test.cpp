// SPDX-License-Identifier: Apache-2.0
// The stages of a decode step in one kernel: that each reads what the stage before it has written, to a place that no other
// stage writes to; and that tiles and blocks cover each product once.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "jrt_lm/cpu_device.hpp"
#include "jrt_lm/step_kernel.hpp"
#include "jrt_lm/step_plan.hpp"
#include "jrt_lm/weights.hpp"

namespace jrt_lm::test {
namespace {

std::int64_t bytes_of_y(const Stage& stage, std::int64_t rows) {
  return rows * stage.y_columns * 2;
}
bool writes_residual(const Stage& stage) {
  return stage.kind == StageKind::embed || stage.kind == StageKind::adds;
}

ModelConfig config_of(bool rotates) {
  ModelConfig config;
  config.vocabulary = 61;
  config.vocabulary_rows = 64;
  config.width = 64;
  config.hidden = 96;
  config.channels = 128;
  config.heads = 4;
  config.window_kv_heads = 2;
  config.shape = {16, 16, 4, 3};
  config.has_encoder = true;
  config.rotates = rotates;
  config.layers = {MixerKind::convolution, MixerKind::linear, MixerKind::window, MixerKind::convolution};
  return config;
}

void check(const ModelConfig& config, bool staged) {
  CpuDevice device{ModelOptions{}};
  const RandomWeights source;
  const ModelWeights<CpuDevice, jrt::BFloat16> weights(device, config, source);
  LogitRows<CpuDevice, jrt::BFloat16> logits;
  constexpr std::int64_t rows = 3;
  logits.reserve(device, rows, config);
  std::vector<char> states(2 * config.layers.size());
  char* const staging = states.data() + config.layers.size();
  const auto place_of = [&](std::size_t i) { return StagePlace{states.data() + i, staged ? staging + i : nullptr}; };
  StepPlan<CpuDevice, jrt::BFloat16> plan(config, weights, place_of, rows, logits);
  std::vector<Stage>& stages = plan.stages();
  REQUIRE(stages.front().kind == StageKind::embed);
  REQUIRE(stages.back().kind == StageKind::likeliest);
  // Bytes that no two stages write.
  std::vector<bool> written(static_cast<std::size_t>(plan.exchange_bytes()));
  const auto write = [&](std::int64_t begin, std::int64_t bytes) {
    REQUIRE(begin % 16 == 0);
    REQUIRE(begin >= 0);
    REQUIRE(begin + bytes <= plan.exchange_bytes());
    for (std::int64_t i = begin; i < begin + bytes; ++i) {
      REQUIRE_FALSE(written[static_cast<std::size_t>(i)]);
      written[static_cast<std::size_t>(i)] = true;
    }
  };
  const Stage* before = nullptr;
  std::size_t mixers = 0;
  for (const Stage& stage : stages) {
    if (stage.state != nullptr) {
      CHECK(stage.state == states.data() + mixers);
      CHECK(stage.staged == (staged ? staging + mixers : nullptr));
      ++mixers;
    }
    if (before != nullptr && stage.kind != StageKind::likeliest) {
      CHECK(stage.x == before->y);
      CHECK(stage.x_columns == before->y_columns);
      if (is_product(stage.kind)) {
        CHECK(stage.in == stage.x_columns);
        CHECK(is_normed(stage.kind) == writes_residual(*before));
        CHECK((!is_normed(stage.kind) || stage.x_squares == before->y_squares));
      }
    }
    if (stage.kind == StageKind::logits) {
      CHECK(stage.result == logits.values.data());
    } else if (stage.kind == StageKind::likeliest) {
      CHECK(stage.result == logits.likeliest.data());
    } else {
      CHECK(stage.y_columns == stage.outputs);
      write(stage.y, bytes_of_y(stage, rows));
    }
    if (writes_residual(stage)) {
      CHECK(stage.outputs == config.width);
      CHECK(stage.norm != nullptr);
      write(stage.y_squares, rows * (config.width / tile_outputs) * 4);
    }
    before = &stage;
  }
  CHECK(mixers == config.layers.size());
  // Each row of W once, each tile in one block, those of the residual stream in the same.
  for (const int blocks : {1, 5, 132}) {
    const std::vector<std::int32_t> first_tiles = divide_among_blocks(stages, blocks);
    REQUIRE(std::ssize(first_tiles) == blocks * std::ssize(stages));
    for (std::size_t s = 0; s < stages.size(); ++s) {
      const Stage& stage = stages[s];
      if (!is_product(stage.kind) && stage.kind != StageKind::embed) {
        CHECK(stage.tiles == 0);
        continue;
      }
      std::multiset<int> weight_rows;
      for (int block = 0; block < blocks; ++block) {
        int tiles = 0;
        const int first = first_tiles[static_cast<std::size_t>(block) * stages.size() + s];
        for (int tile = first; tile < stage.tiles; tile += blocks, ++tiles) {
          for (int part = 0; part < tile_parts(stage.kind); ++part) {
            for (int row = 0; row < tile_outputs; ++row) {
              weight_rows.insert(tile_row(stage, tile, part) + row);
            }
          }
        }
        if (writes_residual(stage)) {
          CHECK(first == block);
          CHECK(tiles <= residual_tiles(static_cast<int>(config.width), blocks));
        }
      }
      const bool doubled = stage.kind == StageKind::convolves || stage.kind == StageKind::gates;
      REQUIRE(std::ssize(weight_rows) == (doubled ? 2 : 1) * stage.outputs);
      int next = 0;
      for (const int row : weight_rows) {
        CHECK(row == next++);
      }
    }
  }
}

/// Stages of a published model, as many layers of convolutions, by their sizes alone.
std::vector<Stage> sizes_of(const ModelConfig& config) {
  std::vector<Stage> stages;
  const auto add = [&](StageKind kind, std::int64_t in, std::int64_t outputs) {
    Stage stage;
    stage.kind = kind;
    stage.in = static_cast<std::int32_t>(in);
    stage.outputs = static_cast<std::int32_t>(outputs);
    stages.push_back(stage);
  };
  for (std::size_t i = 0; i < config.layers.size(); ++i) {
    add(StageKind::convolves, config.width, config.channels);
    add(StageKind::adds, config.channels, config.width);
    add(StageKind::gates, config.width, config.hidden);
    add(StageKind::adds, config.hidden, config.width);
  }
  return stages;
}

TEST_CASE("blocks read as many weights of a step") {
  // 1792 columns are 224 tiles, of which 92 of 132 blocks have two.
  std::vector<Stage> stages = sizes_of(ModelConfig::published("1.3b"));
  constexpr std::size_t blocks = 132;
  const std::vector<std::int32_t> first_tiles = divide_among_blocks(stages, blocks);
  std::vector<std::int64_t> read(blocks);
  std::int64_t all = 0;
  for (std::size_t block = 0; block < blocks; ++block) {
    for (std::size_t s = 0; s < stages.size(); ++s) {
      for (int tile = first_tiles[block * stages.size() + s]; tile < stages[s].tiles; tile += static_cast<int>(blocks)) {
        read[block] += std::int64_t{stages[s].in} * tile_parts(stages[s].kind);
      }
    }
    all += read[block];
  }
  const auto [least, most] = std::minmax_element(read.begin(), read.end());
  const auto mean = static_cast<double>(all) / static_cast<double>(blocks);
  CHECK(static_cast<double>(*most) < 1.01 * mean);
  CHECK(static_cast<double>(*least) > 0.97 * mean);
}

TEST_CASE("a stage reads what stages before it have written, and products are divided without a gap") {
  check(config_of(true), false);
  check(config_of(false), true);
}

TEST_CASE("a prompt's linear attention reads two products of the same rows: its own, and the encoder region's") {
  const ModelConfig config = config_of(true);
  CpuDevice device{ModelOptions{}};
  const RandomWeights source;
  const ModelWeights<CpuDevice, jrt::BFloat16> weights(device, config, source);
  LogitRows<CpuDevice, jrt::BFloat16> logits;
  logits.reserve(device, 1, config);
  const auto place_of = [](std::size_t /*i*/) { return StagePlace{}; };
  constexpr std::int64_t rows = 5;
  StepPlan<CpuDevice, jrt::BFloat16> step(config, weights, place_of, rows, logits);
  StepPlan<CpuDevice, jrt::BFloat16> prompt(config, weights, place_of, rows, logits, true);
  const std::vector<Stage>& stages = prompt.stages();
  CHECK(stages.size() == step.stages().size() + 1);
  CHECK(prompt.exchange_bytes() > step.exchange_bytes());
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const Stage& stage = stages[i];
    if (stage.kind != StageKind::linear) {
      CHECK(stage.encoder_columns == 0);
      continue;
    }
    const Stage& encoder = stages[i - 1];
    const Stage& own = stages[i - 2];
    CHECK(stage.x == own.y);
    CHECK(stage.encoder == encoder.y);
    CHECK(stage.encoder_columns == encoder.outputs);
    CHECK(encoder.outputs == config.heads * (config.shape.feature_dim + config.shape.head_dim));
    CHECK(encoder.kind == StageKind::stores);
    CHECK(encoder.x == own.x);
    CHECK(encoder.x_squares == own.x_squares);
    CHECK(encoder.weight != own.weight);
  }
}

TEST_CASE("each piece of a round's weights has a place, and slots without any are left out") {
  for (const int parts : {1, 2, 4}) {
    for (const int at_once : {1, 2, 4}) {
      const RingBatch batch = ring_batch(parts, at_once);
      std::set<std::pair<int, int>> places;
      for (int number = 0; number < parts * at_once; ++number) {
        CHECK(batch.part(number) < parts);
        CHECK(batch.piece(number) < at_once);
        places.insert({batch.part(number), batch.piece(number)});
      }
      CHECK(std::ssize(places) == parts * at_once);
      CHECK(batch.slots() * slot_pieces >= parts * at_once);
      for (int present_parts = 0; present_parts <= parts; ++present_parts) {
        for (int present_pieces = 0; present_pieces <= at_once; ++present_pieces) {
          std::set<int> slots;
          for (int number = 0; number < parts * at_once; ++number) {
            if (batch.part(number) < present_parts && batch.piece(number) < present_pieces) {
              slots.insert(number / slot_pieces);
            }
          }
          for (int slot = 0; slot < batch.slots(); ++slot) {
            CHECK(batch.has(slot, present_parts, present_pieces) == slots.contains(slot));
          }
        }
      }
    }
  }
}

TEST_CASE("sizes that the kernel takes") {
  const ModelConfig good = config_of(true);
  CHECK(has_step_sizes(good, 16, 1));
  CHECK_FALSE(has_step_sizes(good, 17, 1));
  CHECK(has_step_sizes(ModelConfig::published("360m"), 1, 2));
  CHECK_FALSE(has_step_sizes(ModelConfig::published("360m"), 1, 1));
  CHECK(has_step_sizes(ModelConfig::published("1.3b"), 1, 4));
  const auto refused = [&](auto change) {
    ModelConfig config = good;
    change(config);
    CHECK_FALSE(has_step_sizes(config, 1, 1));
  };
  refused([](ModelConfig& config) { config.hidden = 48; });
  refused([](ModelConfig& config) { config.width = 80; });
  refused([](ModelConfig& config) { config.channels = 1056; });
  refused([](ModelConfig& config) { config.vocabulary_rows = 63; });
  refused([](ModelConfig& config) { config.shape.head_dim = 24; });
}

}  // namespace
}  // namespace jrt_lm::test
