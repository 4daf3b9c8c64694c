"""The command `opdlight`: `opdlight train …` is `python -m opdlight.train …`, and so are the others."""

import ast
import difflib
import importlib
import os
import runpy
import sys
from pathlib import Path

from opdlight import __version__
from opdlight.system.pipes import may_be_cut

HERE = Path(__file__).parent


def main() -> None:
    """Run the command that the first argument names; without one, list them all."""
    names, first = commands(), sys.argv[1] if len(sys.argv) > 1 else "--help"
    if first in ("-h", "--help"):
        with may_be_cut():
            print(_help(names))
    elif first == "--version":
        print(f"opdlight {__version__}")
    elif first in ("-sc", "--shell-completion"):
        _complete(names)
    elif first in names:
        del sys.argv[1]
        # as `python -m` does it: modules of one's own are found in the current folder, and processes that Lightning
        # starts run the same module
        sys.path.insert(0, os.getcwd())
        runpy.run_module(f"opdlight.{first}", run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(first, names, n=1)
        guess = f"Did you mean `opdlight {near[0]}`?" if near else f"Commands: {', '.join(names)}."
        print(f"error: There is no command {first!r}. {guess}", file=sys.stderr)
        sys.exit(2)


def commands() -> dict[str, Path]:
    """Name of each command, as `python -m opdlight.<name>` has it → the file that is run."""
    files = sorted([*HERE.glob("*/__main__.py"), *HERE.glob("lab/*/__main__.py")])
    return {".".join(file.parent.relative_to(HERE).parts): file for file in files}


def _help(names: dict[str, Path]) -> str:
    width = max(map(len, names))
    lines = ["Usage: opdlight <command> [argument]...", "", "Commands (`opdlight <command> --help` says more):"]
    for name, file in names.items():
        about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<{width}}  {about.partition(':')[0]}")
    return "\n".join([*lines, "", 'Completion in this shell: eval "$(opdlight -sc install=bash)"'])


def _complete(names: dict[str, Path]) -> None:
    """Hydra's completion in a shell: of the command's name here, of what comes after it by that command itself."""
    line, words = os.environ.get("COMP_LINE", ""), os.environ.get("COMP_LINE", "").split()
    if "query" not in sys.argv[-1]:
        command = "train"  # whichever installs it, it is for all
    elif len(words) < 2 or words[1] not in names or line == f"{words[0]} {words[1]}":
        print(" ".join(names))
        return
    elif "hydra_entry" not in names[words[1]].read_text(encoding="utf-8"):
        return  # it takes words, not options of groups
    else:
        command = words[1]
    os.environ["COMP_LINE"] = line.replace(f" {command}", "", 1)
    importlib.import_module(f"opdlight.{command}.__main__").main()


if __name__ == "__main__":
    main()
