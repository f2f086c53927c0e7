# SPDX-License-Identifier: Apache-2.0
"""python3 -m jrt list | prebuild | clean: the cache of compiled operators.

    list                                     what the cache has, with sizes
    prebuild [NAME=VALUE …] [--target cpu]   compiles all operations of one operator: kind=linear dtype=bfloat16 d=16 …
    clean                                    removes the cache
"""

import argparse
import dataclasses
import shutil
from typing import Any

import jrt
from jrt._compile import cache_root


def _operator(settings: list[str]) -> jrt.Operator:
    types = {field.name: field.type for field in dataclasses.fields(jrt.Operator)}
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in types:
            raise SystemExit(f"jrt: {name!r} is no setting of an operator; those are {', '.join(types)}.")
        if types[name] is bool:
            if value not in ("true", "false"):
                raise SystemExit(f"jrt: {name} is {value!r}, but must be true or false.")
            values[name] = value == "true"
        elif types[name] in (int, int | None):
            try:
                values[name] = int(value)
            except ValueError:
                raise SystemExit(f"jrt: {name} is {value!r}, but must be an int.") from None
        else:
            values[name] = value
    return jrt.Operator(**values)


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python3 -m jrt", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    commands.add_parser("clean")
    prebuild = commands.add_parser("prebuild")
    prebuild.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    prebuild.add_argument("--target", default="cpu", help='"cpu" or a GPU architecture, "90a" for Hopper')
    prebuild.add_argument("--operations", nargs="+")
    arguments = parser.parse_args(command_line)
    if arguments.command == "list":
        for path in sorted(cache_root().glob("*/*.so")):
            print(f"{path.stat().st_size / 1e6:7.2f} MB  {path.parent.name}/{path.stem}")
    elif arguments.command == "clean":
        shutil.rmtree(cache_root(), ignore_errors=True)
    else:
        try:
            jrt.prebuild([_operator(arguments.settings)], arguments.operations, arguments.target)
        except (ValueError, jrt.CompileError) as error:
            raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
