# SPDX-License-Identifier: Apache-2.0
"""Compiles one operation of one operator into a shared library, once.

The cache folder is named by everything that a library depends on: the package's sources, the binding's version, the compiler
and what it compiles for. A library in it has a readable name, and its C++ source beside it.
"""

import contextlib
import fcntl
import functools
import glob
import hashlib
import os
import pathlib
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

import tvm_ffi
from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path, find_libtvm_ffi


class CompileError(RuntimeError):
    """A library could not be compiled, or is missing where compiling is switched off. The message has the compiler's output."""


_LONGEST_KEY = 200
_HERE = pathlib.Path(__file__).resolve().parent


def _include_folders() -> list[pathlib.Path]:
    """Folders of jrt's headers and of the binding: in the wheel, or in a checkout."""
    shipped = _HERE / "include"
    if shipped.is_dir():
        return [shipped]
    return [_HERE.parent.parent / "include", _HERE.parent / "src"]


def _eigen_folder() -> pathlib.Path:
    folders: Iterable[pathlib.Path | str | None] = (
        _HERE / "include" / "eigen3", os.environ.get("JRT_EIGEN_INCLUDE"), "/usr/include/eigen3", "/usr/local/include/eigen3")
    for folder in folders:
        if folder and (pathlib.Path(folder) / "Eigen" / "Core").is_file():
            return pathlib.Path(folder)
    raise CompileError("jrt: Eigen's headers were not found. Install them (libeigen3-dev) or set JRT_EIGEN_INCLUDE.")


@functools.cache
def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    for folder in _include_folders():
        for path in sorted([*folder.glob("jrt/**/*.*h*"), *folder.glob("jrt_bind/*.hpp")]):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    for name in ("_compile.py", "_operator.py"):  # what is compiled, and how
        digest.update((_HERE / name).read_bytes())
    return digest.hexdigest()[:10]


def _version_of(compiler: str) -> str:
    command = shlex.split(compiler)
    path = shutil.which(command[0])
    if path is None:
        raise CompileError(f"jrt: the compiler {command[0]} was not found; it is needed to compile an operator. Install it, or "
                           "name another by CXX (for GPUs CUDA_HOME).")
    return _version_at(path, *command[1:])


@functools.cache
def _version_at(path: str, *arguments: str) -> str:
    result = subprocess.run([path, *arguments, "--version"], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise CompileError(f"jrt: {shlex.join([pathlib.Path(path).name, *arguments])} --version fails, so it is no compiler "
                           f"that can be used.\n{result.stderr}")
    found = re.findall(r"\d+\.\d+(?:\.\d+)?", result.stdout)
    name = "-".join([pathlib.Path(path).name, *arguments])
    return f"{re.sub('[^A-Za-z0-9_.+=-]', '_', name)}-{found[-1] if found else 'unknown'}"


@functools.cache
def _host_processor() -> str:
    """A short name of the instruction set that -march=native means here."""
    if platform.system() == "Linux":
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return platform.machine() + "-" + hashlib.sha256(line.encode()).hexdigest()[:6]
    return platform.machine()


def _cpu_compiler() -> str:
    """A command, maybe with arguments, as "ccache g++"."""
    return os.environ.get("CXX", "").strip() or "g++"


def _cuda_compiler() -> str:
    """nvcc from PATH, or else from CUDA_HOME, by default /usr/local/cuda."""
    installed = os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    return "nvcc" if shutil.which("nvcc") is not None or not os.path.isfile(installed) else installed


def cache_root() -> pathlib.Path:
    """`JRT_CACHE_DIR`, by default ~/.cache/jrt."""
    return pathlib.Path(os.environ.get("JRT_CACHE_DIR") or os.path.join(os.path.expanduser("~"), ".cache", "jrt"))


def cache_folder(target: str) -> pathlib.Path:
    """The folder of libraries for a target, below `cache_root`: "cpu", or a GPU architecture as "90a"."""
    return cache_root() / _folder_name(target, _version_of(_cpu_compiler() if target == "cpu" else _cuda_compiler()))


def _folder_name(target: str, compiler: str) -> str:
    architecture = f"sm_{target}" if target != "cpu" else _host_processor()
    return f"jrt-{_digest_of_sources()}-ffi-{tvm_ffi.__version__}-{compiler}-{architecture}"


def _command(target: str, source: pathlib.Path, library: pathlib.Path) -> list[str]:
    includes = [f"-I{folder}" for folder in _include_folders()]
    includes += ["-isystem", str(find_include_path()), "-isystem", str(find_dlpack_include_path())]
    ffi = pathlib.Path(find_libtvm_ffi())
    link = [f"-L{ffi.parent}", "-ltvm_ffi"]
    if target == "cpu":
        return [*shlex.split(_cpu_compiler()), "-std=c++20", "-O3", "-march=native", "-DNDEBUG", "-fPIC", "-shared",
                "-fvisibility=hidden", *includes, "-isystem", str(_eigen_folder()), str(source), "-o", str(library), *link]
    return [_cuda_compiler(), "-std=c++20", "-O3", "-DNDEBUG", f"-gencode=arch=compute_{target},code=sm_{target}",
            "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden", "-shared", "-cudart=shared", *includes,
            str(source), "-o", str(library), *link]


def library(target: str, key: str, source: str) -> pathlib.Path:
    """Path of the library of `source` for `target`, compiled if the cache does not have it.

    Where there is no compiler, a library that any other has compiled for this processor serves.
    Errors: `CompileError` with the compiler's output; with `JRT_DISABLE_JIT` set to anything but 0, where it is missing."""
    if len(key.encode()) > _LONGEST_KEY:  # file systems bound names of files
        key = f"{key[:_LONGEST_KEY - 40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    try:
        folder = cache_folder(target)
    except CompileError:
        compiled = sorted(filter(_is_whole, cache_root().glob(f"{_folder_name(target, '*')}/{glob.escape(key)}.so")))
        if compiled:
            return compiled[-1]
        raise
    path = folder / f"{key}.so"
    if _is_whole(path):
        return path
    if os.environ.get("JRT_DISABLE_JIT", "0") not in ("", "0"):
        there = "cut short" if path.exists() else "not"
        raise CompileError(f"jrt: {key} is {there} in {folder}, and JRT_DISABLE_JIT is set. Compile it before with "
                           "jrt.prebuild or python3 -m jrt prebuild.")
    try:
        return _compiled(target, key, source, folder)
    except OSError as error:
        raise CompileError(f"jrt: {key} cannot be compiled into {folder}: {error}. JRT_CACHE_DIR names another "
                           "folder.") from error


def _compiled(target: str, key: str, source: str, folder: pathlib.Path) -> pathlib.Path:
    path = folder / f"{key}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{key}.lock"):
        if _is_whole(path):
            return path
        for other in folder.iterdir():  # left by compilations that were killed
            if re.fullmatch(rf"{re.escape(key)}\.\d+\.partial", other.name):
                other.unlink(missing_ok=True)
        source_path = folder / f"{key}{'.cpp' if target == 'cpu' else '.cu'}"
        source_path.write_text(source)
        partial = folder / f"{key}.{os.getpid()}.partial"
        command = _command(target, source_path, partial)
        print(f"jrt: compiling {key} for {target} …", file=sys.stderr, flush=True)
        start = time.monotonic()
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if result.returncode != 0:
            partial.unlink(missing_ok=True)
            raise CompileError(f"jrt: {key} did not compile.\n{' '.join(command)}\n{result.stdout}{result.stderr}")
        os.replace(partial, path)
        print(f"jrt: compiled {key} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
    return path


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Waits until no other thread or process is in here with this path. The system opens the lock of a killed process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_whole(path: pathlib.Path) -> bool:
    """Whether a library is there and, where libraries are ELF files, not cut short: their last part is a table of which the
    first bytes tell the place."""
    try:
        with path.open("rb") as file:
            header = file.read(64)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if platform.system() != "Linux":
        return True
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return False
    table, = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    return bool(path.stat().st_size >= table + size * count)
