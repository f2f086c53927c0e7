// SPDX-License-Identifier: Apache-2.0
// The umbrella header, nothing instantiated.
#include <jrt/jrt.hpp>
