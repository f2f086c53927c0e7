#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What it costs to compile the library: CPU seconds, memory and object size of each source beside this file.

    bench/compile/measure.py                       all of them, three times each; CUDA where nvcc is
    bench/compile/measure.py window stack          some
    bench/compile/measure.py --budget FILE         those in FILE; fails where a ratio is 25 % above the one there

Seconds are those of the compiler and all its parts, user and system, the least of the repetitions. Ratios are to a file that
includes <Eigen/Core> alone, compiled by the same g++ in turn with the source, so that they say little about the machine.
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
INCLUDE = HERE.parent.parent / "include"
BASELINE = "eigen_core"
FLAGS = ["-std=c++20", "-O2"]
CUDA_FLAGS = ["--generate-code=arch=compute_90a,code=[compute_90a,sm_90a]"]  # as CMake says it for 90a
ALLOWED = 1.25  # times the budget's ratio
ATTEMPTS = 3  # of a row that is above its budget, before it counts


def sources():
    """Name and path of each, in the order of the table."""
    names = [BASELINE, "header_cpu", "header_jrt", "linear_prefill", "linear_types", "window", "convolution", "stack"]
    cuda = ["header_cuda", "linear_bfloat16"]
    found = {name: HERE / f"{name}.cpp" for name in names}
    found.update({f"cuda/{name}": HERE / f"{name}.cu" for name in cuda})
    return found


def compile_once(command, source, folder):
    """CPU seconds, peak memory in MB and object size in KB."""
    target = pathlib.Path(folder) / "object.o"
    arguments = [*command, "-c", str(source), "-o", str(target)]
    process = subprocess.Popen(arguments)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"does not compile: {' '.join(arguments)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, target.stat().st_size / 1024


def measure(command, source, host, baseline, folder, times):
    """The least of each number, and the ratio to the baseline's seconds, which is compiled in turn with it: machines are not
    always as fast."""
    rows = []
    seconds = []
    for _ in range(times):
        seconds.append(compile_once(host, baseline, folder)[0])
        rows.append(compile_once(command, source, folder))
    row = tuple(min(numbers) for numbers in zip(*rows))
    return row, row[0] / min(seconds)


def print_row(name, row, ratio):
    seconds, memory, size = row
    print(f"{name:24}{seconds:8.2f}{ratio:8.2f}{memory:8.0f}{size:11.0f}", flush=True)


def read_budget(path):
    """Lines of a name and a ratio; # begins a comment."""
    lines = (line.split("#")[0].split() for line in pathlib.Path(path).read_text().splitlines())
    return {words[0]: float(words[1]) for words in lines if words}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="sources, all if none is named")
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--nvcc", default=shutil.which("nvcc"))
    parser.add_argument("--eigen", default="/usr/include/eigen3", help="folder of Eigen's headers")
    parser.add_argument("--include", default=str(INCLUDE), help="folder of the library's headers, for comparisons")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--budget", help="file of names and ratios")
    options = parser.parse_args()
    budget = read_budget(options.budget) if options.budget else {}
    found = sources()
    names = options.names or list(budget) or [name for name in found if options.nvcc or not name.startswith("cuda/")]
    host = [options.compiler, *FLAGS, f"-I{options.include}", f"-I{options.eigen}"]
    cuda = [options.nvcc, *FLAGS, *CUDA_FLAGS, f"-I{options.include}"]
    print(f"{' '.join([options.compiler, *FLAGS])}; nvcc: {' '.join([*FLAGS, *CUDA_FLAGS])}")
    print(f"{'':24}{'CPU s':>8}{'ratio':>8}{'MB':>8}{'object KB':>11}")
    too_slow = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            command = cuda if name.startswith("cuda/") else host
            limit = budget.get(name, float("inf")) * ALLOWED
            for _ in range(ATTEMPTS):
                row, ratio = measure(command, found[name], host, found[BASELINE], folder, options.repeat)
                if ratio <= limit:
                    break
            print_row(name, row, ratio)
            if ratio > limit:
                too_slow.append(f"{name}: {ratio:.2f} times {BASELINE}, at most {limit:.2f} allowed")
    if too_slow:
        sys.exit("above the budget:\n  " + "\n  ".join(too_slow))


if __name__ == "__main__":
    main()
