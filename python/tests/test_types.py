# SPDX-License-Identifier: Apache-2.0
"""The package's annotations, and what a program that uses it sees of them."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

for _name in ("mypy", "torch", "jax"):
    pytest.importorskip(_name, reason=f"{_name} is not installed")
if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("the settings of a checkout are not there", allow_module_level=True)

PROGRAM = """
import jrt, jrt.torch, torch
from jrt.torch.language_model import LanguageModel

def attend(q: torch.Tensor) -> torch.Tensor:
    return jrt.torch.based(q, q, q).square() + jrt.torch.window_attention(q, q, q, left_window=8)

def logits(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    states = model.new_states(slots=2)
    return model.logits(model.prefill(tokens, states))

operator: jrt.Operator = jrt.Operator(d=16)
jrt.Operator(d="16")
jrt.torch.based(1, 2, 3)
operator.prefil(query=None)
"""


def test_annotations_hold(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = dict(os.environ, MYPYPATH=str(ROOT / "python"))
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    # A program's mistakes are found, and nothing else.
    result = subprocess.run([*command, "--config-file", str(ROOT / "pyproject.toml"), "--no-warn-unused-ignores", str(program)],
                            cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = [line.split(":")[1] for line in result.stdout.splitlines() if line.startswith(str(program)) and "error" in line]
    assert sorted(set(lines)) == ["13", "14", "15"], result.stdout + result.stderr
