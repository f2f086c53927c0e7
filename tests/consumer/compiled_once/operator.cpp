// SPDX-License-Identifier: Apache-2.0
// The one file of an engine that compiles the operator.
#include "operator.hpp"

#include <jrt/cpu/linear_attention.hpp>

template std::size_t jrt::prefill_workspace_bytes(const jrt::PrefillArgs<Operator>&, const jrt::Cpu<>&);
template jrt::Status jrt::prefill(const jrt::PrefillArgs<Operator>&, const jrt::Workspace&, const jrt::Cpu<>&);
template jrt::Status jrt::decode_step(const jrt::DecodeArgs<Operator>&, const jrt::Workspace&, const jrt::Cpu<>&);
