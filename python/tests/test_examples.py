# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent.parent / "examples" / "python"
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples of a checkout are not there")


def run(name, *arguments):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    result = subprocess.run([sys.executable, str(EXAMPLES / name), *arguments], env=environment, capture_output=True, text=True,
                            check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("device", DEVICES)
def test_an_engine_serves_what_one_prefill_gives(device):
    assert "all as in one prefill" in run("engine_slots.py", "--device", device)


@pytest.mark.skipif("cuda" not in DEVICES, reason="no CUDA device; on a CPU the training takes minutes")
def test_a_model_learns_to_recall():
    assert "recalled" in run("training.py", "--device", "cuda")
