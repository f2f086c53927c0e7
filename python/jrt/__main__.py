# SPDX-License-Identifier: Apache-2.0
"""python3 -m jrt list | prebuild | clean: the cache of compiled operators.

    list                                     what the cache has, with sizes
    prebuild [NAME=VALUE …] [--target cpu]   compiles all operations of one operator: kind=linear dtype=bfloat16 d=16 …
    clean                                    removes the cache
"""

import argparse
import dataclasses
import shutil

import jrt
from jrt._compile import cache_root


def _operator(settings):
    types = {field.name: field.type for field in dataclasses.fields(jrt.Operator)}
    values = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in types:
            raise SystemExit(f"jrt: {name!r} is no setting of an operator; those are {', '.join(types)}.")
        if types[name] is bool:
            if value not in ("true", "false"):
                raise SystemExit(f"jrt: {name} is {value!r}, but must be true or false.")
            values[name] = value == "true"
        elif types[name] is int or name == "dv":
            values[name] = int(value)
        else:
            values[name] = value
    return jrt.Operator(**values)


def main():
    parser = argparse.ArgumentParser(prog="python3 -m jrt", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    commands.add_parser("clean")
    prebuild = commands.add_parser("prebuild")
    prebuild.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    prebuild.add_argument("--target", default="cpu", help='"cpu" or a GPU architecture, "90a" for Hopper')
    prebuild.add_argument("--operations", nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "list":
        for path in sorted(cache_root().glob("*/*.so")):
            print(f"{path.stat().st_size / 1e6:7.2f} MB  {path.parent.name}/{path.stem}")
    elif arguments.command == "clean":
        shutil.rmtree(cache_root(), ignore_errors=True)
    else:
        jrt.prebuild([_operator(arguments.settings)], arguments.operations, arguments.target)


if __name__ == "__main__":
    main()
