# SPDX-License-Identifier: Apache-2.0
import pathlib
import sys

try:
    import jrt  # noqa: F401  an installed package is what gets tested
except ModuleNotFoundError:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
