# SPDX-License-Identifier: Apache-2.0
"""The cache of compiled libraries under what happens to caches: several at once, kills, damage, compilers that are gone."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jrt
import pytest
from jrt import _calls, _compile
from operators import LINEAR

SOURCE = '''#include <tvm/ffi/c_api.h>
extern "C" __attribute__((visibility("default"))) int __tvm_ffi_answer(void*, const TVMFFIAny*, int32_t, TVMFFIAny* result) {
  result->type_index = kTVMFFIInt;
  result->v_int64 = 42;
  return 0;
}
'''


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JRT_CACHE_DIR", str(tmp_path / "a cache, with spaces"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.delenv("JRT_DISABLE_JIT", raising=False)
    return tmp_path


def answer(key="answer"):
    return _calls.load(key, SOURCE, "cpu")["answer"]()


def compiler(folder, monkeypatch, lines, name="compiler"):
    """A compiler of which each start is noted in the file `starts`, after which it does what the shell's lines say."""
    script = folder / name
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\necho started >>"{folder}/starts"\n{lines}\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{script}'")


def starts(folder):
    path = folder / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def names(suffix):
    return [path.name for path in _compile.cache_root().glob("*/*") if path.suffix == suffix]


def test_several_threads_and_processes_compile_once(cache, monkeypatch):
    compiler(cache, monkeypatch, 'sleep 0.3; exec g++ "$@"')
    code = f"from jrt import _calls; assert _calls.load('answer', {SOURCE!r}, 'cpu')['answer']() == 42"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    found = []
    threads = [threading.Thread(target=lambda: found.append(answer())) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [42] * 4 and [process.wait() for process in processes] == [0, 0] and starts(cache) == 1


def test_a_killed_compilation_leaves_nothing_in_the_way(cache, monkeypatch):
    compiler(cache, monkeypatch, 'while [ "$1" != -o ]; do shift; done; echo half >"$2"; sleep 60')
    code = f"from jrt import _compile; _compile.library('cpu', 'answer', {SOURCE!r})"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    for _ in range(200):
        if names(".partial"):
            break
        time.sleep(0.05)
    assert names(".partial") and not names(".so")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    compiler(cache, monkeypatch, 'exec g++ "$@"')  # of the same name and version: the same folder
    assert answer() == 42 and not names(".partial") and names(".so") == ["answer.so"]


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: data[:-1], lambda data: b"",
                                    lambda data: b"\0" * 99])
def test_libraries_that_are_cut_short_are_compiled_anew(cache, monkeypatch, damage):
    path = _compile.library("cpu", "answer", SOURCE)
    path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setenv("JRT_DISABLE_JIT", "1")
    with pytest.raises(jrt.CompileError, match="answer is cut short in .*, and JRT_DISABLE_JIT is set"):
        answer()
    monkeypatch.delenv("JRT_DISABLE_JIT")
    assert answer() == 42


def test_a_library_that_cannot_be_loaded_is_named(cache):
    path = _compile.library("cpu", "answer", SOURCE)
    data = bytearray(path.read_bytes())
    data[18] ^= 0xff  # the machine that it is for
    path.write_bytes(data)
    with pytest.raises(jrt.CompileError, match=r"answer\.so cannot be loaded: .*Remove it, and it is compiled anew"):
        answer()


def test_a_cache_without_a_lock_to_open_is_named(cache):
    (_compile.cache_folder("cpu") / "answer.lock").mkdir(parents=True)  # as a folder without rights to write
    with pytest.raises(jrt.CompileError, match="answer cannot be compiled into .*JRT_CACHE_DIR names another folder"):
        answer()


def test_without_a_compiler_what_another_compiled_serves(cache, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(jrt.CompileError, match="the compiler no-such-compiler was not found; .* name another by CXX"):
        answer()
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(jrt.CompileError, match="false --version fails"):
        answer()
    monkeypatch.delenv("CXX")
    assert answer() == 42
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert answer() == 42
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(jrt.CompileError, match="the compiler nvcc was not found.*CUDA_HOME"):
        LINEAR.compile("commit", target="90a")


def test_long_names_have_files_of_their_own(cache):
    keys = ["long" * 100, "long" * 100 + "er"]
    assert [answer(key) for key in keys] == [42, 42] and len(names(".so")) == 2


def test_other_sources_or_versions_have_another_folder(cache, monkeypatch):
    before = _compile.cache_folder("cpu")
    monkeypatch.setattr(_compile, "_digest_of_sources", lambda: "0" * 10)
    assert _compile.cache_folder("cpu") != before
    monkeypatch.setattr(_compile.tvm_ffi, "__version__", "0")
    assert "ffi-0-" in _compile.cache_folder("cpu").name


def test_a_process_that_forks_calls_on(tmp_path):
    """Threads are not there after a fork: a pool of the parent's would wait for them for ever, in calls and at the end."""
    program = tmp_path / "program.py"
    program.write_text('''
import os, sys
import numpy as np
from operators import LINEAR, inputs

tensors = inputs(tokens=600)
expected = LINEAR.prefill(**tensors, threads=2)["output"]
for calls in (True, False):
    child = os.fork()
    if child == 0:
        assert not calls or np.array_equal(LINEAR.prefill(**tensors, threads=2)["output"], expected)
        sys.exit()  # runs what threads leave behind
    assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(LINEAR.prefill(**tensors, threads=2)["output"], expected)
''')
    path = os.pathsep.join([str(pathlib.Path(__file__).resolve().parent), *(path for path in sys.path if path)])
    subprocess.run([sys.executable, str(program)], env=dict(os.environ, PYTHONPATH=path), check=True, timeout=120)
