// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Version of the library, following semantic versioning. `JRT_VERSION` orders versions as integers.
#define JRT_VERSION_MAJOR 0
#define JRT_VERSION_MINOR 1
#define JRT_VERSION_PATCH 0
#define JRT_VERSION (JRT_VERSION_MAJOR * 10000 + JRT_VERSION_MINOR * 100 + JRT_VERSION_PATCH)
