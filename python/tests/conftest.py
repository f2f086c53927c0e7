# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import subprocess
import sys

try:
    import jrt  # noqa: F401  an installed package is what gets tested
except ModuleNotFoundError:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

_compiling = None


def pytest_collection_finish(session):
    """Of a whole run, other cores compile what tests share, while this one compiles what the first of them need."""
    global _compiling
    names = {item.path.name for item in session.items}
    if {"test_numpy.py", "test_states.py"} <= names and not session.config.option.collectonly:
        path = os.pathsep.join([str(pathlib.Path(__file__).resolve().parent), *(path for path in sys.path if path)])
        _compiling = subprocess.Popen([sys.executable, "-m", "operators"], env=dict(os.environ, PYTHONPATH=path),
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def pytest_sessionfinish():
    if _compiling is not None:
        _compiling.terminate()
        _compiling.wait()
