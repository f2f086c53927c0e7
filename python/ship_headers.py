# SPDX-License-Identifier: Apache-2.0
"""Copies what an operator is compiled from into the wheel: the library's headers, the binding's, and Eigen's."""

import os
import pathlib
import shutil

from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).resolve().parent.parent


def eigen_folder():
    for folder in (os.environ.get("JRT_EIGEN_INCLUDE"), "/usr/include/eigen3", "/usr/local/include/eigen3"):
        if folder and (pathlib.Path(folder) / "Eigen" / "Core").is_file():
            return pathlib.Path(folder)
    return None


class BuildPy(build_py):
    def run(self):
        super().run()
        include = pathlib.Path(self.build_lib) / "jrt" / "include"
        shutil.rmtree(include, ignore_errors=True)
        shutil.copytree(ROOT / "include" / "jrt", include / "jrt")
        shutil.copytree(ROOT / "python" / "src" / "jrt_bind", include / "jrt_bind")
        eigen = eigen_folder()
        if eigen is None:
            self.announce("jrt: Eigen's headers were not found, so the wheel has none; the CPU's operators will need "
                          "libeigen3-dev where they are compiled.", level=3)
        else:
            shutil.copytree(eigen / "Eigen", include / "eigen3" / "Eigen",
                            ignore=shutil.ignore_patterns("CMakeLists.txt"))
