// SPDX-License-Identifier: Apache-2.0
// What the others are compared with.
#include <Eigen/Core>
