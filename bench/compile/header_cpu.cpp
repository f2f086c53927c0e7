// SPDX-License-Identifier: Apache-2.0
// The CPU backend of all mixers, nothing instantiated.
#include <jrt/cpu.hpp>
