// SPDX-License-Identifier: Apache-2.0
// What an engine includes wherever it calls its operator: arguments, verbs and jrt::Cpu, but no backend and no Eigen.
#pragma once

#include <jrt/decode.hpp>
#include <jrt/execution/cpu.hpp>
#include <jrt/mixer/linear_attention.hpp>
#include <jrt/prefill.hpp>

using Operator = jrt::BasedLinearAttention<float, 16, 64>;

extern template std::size_t jrt::prefill_workspace_bytes(const jrt::PrefillArgs<Operator>&, const jrt::Cpu<>&);
extern template jrt::Status jrt::prefill(const jrt::PrefillArgs<Operator>&, const jrt::Workspace&, const jrt::Cpu<>&);
extern template jrt::Status jrt::decode_step(const jrt::DecodeArgs<Operator>&, const jrt::Workspace&, const jrt::Cpu<>&);
