// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <jrt/distributed/cpu.hpp>
#include <jrt/prefill.hpp>
#include <vector>

#include "distributed/pieces.hpp"

/// Rows that ranks send one another, from tensors in any place.
namespace jrt::test {
namespace {

constexpr std::int64_t heads = 2;
constexpr int dim = 4;
struct Window : SlidingWindowAttention<double, dim, 7> {};

enum class Rows { apart, keys_first, values_first };

/// Outputs of all ranks, with keys and values in tensors of their own or beside each other in rows of one.
std::vector<double> outputs(Rows rows) {
  const Pieces pieces{2, {30, 12}};
  constexpr std::int64_t row = heads * dim;
  std::vector<Tensor<double>> results(2);
  JRT_REQUIRE_RANKS_OK(run_ranks(2, [&](ThreadCommunicator& communicator) {
    const int rank = communicator.rank();
    const std::int64_t tokens = pieces.local_tokens(rank);
    const auto input = [&](unsigned seed) {
      return random_tensor<double>({1, tokens, heads, dim}, 10 * static_cast<unsigned>(rank) + seed);
    };
    Tensor<double> query = input(1);
    Tensor<double> key = input(2);
    Tensor<double> value = input(3);
    Tensor<double>& output = results[static_cast<std::size_t>(rank)];
    output = zero_tensor<double>({1, tokens, heads, dim});
    PrefillArgs<Window> local;
    local.query = view_of(query);
    local.key = view_of(key);
    local.value = view_of(value);
    local.output = view_of(output);
    std::vector<double> beside(static_cast<std::size_t>(tokens * 2 * row));
    const auto move_beside = [&](TensorView<const double>& view, std::int64_t offset) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        std::copy_n(view.row(0, t, 0), row, beside.data() + t * 2 * row + offset);
      }
      view.data = beside.data() + offset;
      view.token_stride = 2 * row;
      view.batch_stride = tokens * 2 * row;
    };
    if (rows != Rows::apart) {
      move_beside(local.key, rows == Rows::keys_first ? 0 : row);
      move_beside(local.value, rows == Rows::keys_first ? row : 0);
    }
    ContextPlan<Window> plan;
    const Status status = ContextPlan<Window>::make(pieces.layout(), rank, Cpu{}, plan);
    const ContextPrefillArgs<Window> args{local, &plan};
    OwnWorkspace workspace(prefill_workspace_bytes(args, Cpu{}));
    return status.ok() ? prefill(args, communicator, workspace.view(), Cpu{}) : status;
  }));
  std::vector<double> all = results[0].values;
  all.insert(all.end(), results[1].values.begin(), results[1].values.end());
  return all;
}

TEST_CASE("a window's halo: keys and values lie anywhere") {
  const std::vector<double> expected = outputs(Rows::apart);
  CHECK(outputs(Rows::keys_first) == expected);
  CHECK(outputs(Rows::values_first) == expected);
}

}  // namespace
}  // namespace jrt::test
