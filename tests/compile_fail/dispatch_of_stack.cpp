// SPDX-License-Identifier: Apache-2.0
// expect: an operator is the configuration of a mixer; of a stack, list the mixers of its layers
#include <jrt/dispatch.hpp>
#include <jrt/mixer/stack.hpp>

using Model = jrt::Stack<jrt::Layer<jrt::GatedConvolution<float, 3>, 64>>;
jrt::OperatorDescription described = jrt::describe_operator<Model>();
