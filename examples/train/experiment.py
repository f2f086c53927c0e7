# SPDX-License-Identifier: Apache-2.0
"""Runs of one figure: each trains a model and evaluates it, and adds a row to a JSON file. Runs that are in the file are
skipped, and an unfinished one goes on from its checkpoint, so a figure can be made in pieces (--minutes)."""

import argparse
import concurrent.futures
import datetime
import json
import math
import os
import pathlib
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass

import torch

from models import Shape, new_model, operators, save_for_jrt_lm, state_bytes
from training import Settings, fit


@dataclass(frozen=True)
class Run:
    kind: str
    shape: Shape
    task: object
    settings: Settings
    seed: int

    @property
    def name(self):
        size = "" if self.kind == "transformer" else f"_d{self.shape.feature_dim}"
        return f"{self.kind}_w{self.shape.width}{size}_seed{self.seed}"


def parser_of(description, settings, results):
    """The options that all figures have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=settings, default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=pathlib.Path, help=f"results; by default {results}_SETTING.json in --folder")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("build/train"),
                        help="checkpoints, models and results (default build/train)")
    parser.add_argument("--minutes", type=float, default=math.inf,
                        help="stop after so long, to go on with the same command later")
    parser.add_argument("--only", help="runs with this in their names alone, for example jrt_ or seed1")
    parser.add_argument("--no-graphs", action="store_true", help="no CUDA graphs")
    parser.add_argument("--steps", type=int, help="other than the setting's")
    parser.add_argument("--rate", type=float, help="learning rate other than the setting's")
    return parser


def device_name(device):
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
                 platform.processor())
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}"


def _lines(path):
    try:
        return pathlib.Path(path).read_text().splitlines()
    except OSError:
        return []


def read_rows(path):
    return json.loads(path.read_text()) if path.is_file() else []


def add_row(path, row):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("[\n" + ",\n".join(json.dumps(each) for each in [*read_rows(path), row]) + "\n]\n")
    os.replace(partial, path)


def results_path(arguments, results):
    return arguments.json or arguments.folder / f"{results}_{arguments.setting}.json"


def prepare(wanted, device):
    """Compiles what the cache lacks of some operators, for forward and backward passes, several at a time."""
    target = "cpu"
    if torch.device(device).type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        target = f"{major}{minor}" + ("a" if major == 9 else "")
    with concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        jobs = [pool.submit(operator.compile, operation, target=target)
                for operator in dict.fromkeys(wanted) for operation in ("prefill", "backward")]
        for job in jobs:
            job.result()


def _number_type(device):
    return "bfloat16" if torch.device(device).type == "cuda" else "float32"


def run_all(runs, arguments, results):
    """Makes what is missing of the runs. Returns all rows; exits with code 3 where --minutes are over before that."""
    path = results_path(arguments, results)
    deadline = time.monotonic() + 60 * arguments.minutes
    done = {row["name"] for row in read_rows(path)}
    missing = [run for run in runs if run.name not in done and (arguments.only or "") in run.name]
    prepare([operator for run in missing for operator in operators(run.kind, run.shape, _number_type(arguments.device))],
            arguments.device)
    for run in missing:
        if time.monotonic() > deadline or (row := _row(run, arguments, results, deadline)) is None:
            print("The time is over; the same command goes on from here.")
            raise SystemExit(3)
        add_row(path, row)
        print(f"{run.name}: " + ", ".join(f"{name} {value:.3f}" for name, value in row["accuracy"].items()), flush=True)
    return read_rows(path)


def _row(run, arguments, results, deadline):
    folder = arguments.folder / f"{results}_{arguments.setting}"
    model = new_model(run.kind, run.shape, run.seed).to(arguments.device)
    losses, seconds = fit(model, run.task, run.settings, run.seed, name=run.name, checkpoint=folder / f"{run.name}.pt",
                          deadline=deadline)
    if losses is None:
        return None
    model.eval()
    if hasattr(model, "config"):
        save_for_jrt_lm(model, folder / run.name)
    return {"name": run.name, "kind": run.kind, "seed": run.seed, "state_bytes": state_bytes(run.kind, run.shape),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "accuracy": run.task.evaluate(model, arguments.device), "losses": losses, "seconds": round(seconds, 1),
            "shape": asdict(run.shape), "settings": asdict(run.settings), "device": device_name(arguments.device),
            "torch": torch.__version__, "date": datetime.date.today().isoformat(),
            "command": shlex.join([pathlib.Path(sys.executable).name, *sys.argv])}


def load_model(run, arguments, results):
    """The model that `run_all` made of a run."""
    path = arguments.folder / f"{results}_{arguments.setting}" / f"{run.name}.pt"
    model = new_model(run.kind, run.shape, run.seed)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    return model.to(arguments.device).eval()
