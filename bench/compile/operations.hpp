// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <jrt/decode.hpp>
#include <jrt/prefill.hpp>
#include <jrt/status.hpp>
#include <jrt/workspace.hpp>

/// Functions of an engine that call one operation each. The sources beside this file instantiate them explicitly, so that
/// the compiler makes all of an operation's code and nothing else.
namespace bench {

template <class Config, class Execution>
jrt::Status prefill(const jrt::PrefillArgs<Config>& args, const jrt::Workspace& workspace, const Execution& on) {
  return jrt::prefill(args, workspace, on);
}

template <class Config, class Execution>
jrt::Status decode(const jrt::DecodeArgs<Config>& args, const jrt::Workspace& workspace, const Execution& on) {
  return jrt::decode_step(args, workspace, on);
}

}  // namespace bench
