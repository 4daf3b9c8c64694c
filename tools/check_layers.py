"""Check that imports go one way: `python tools/check_layers.py` prints each violation as file:line.

- A room of opdlight imports from its own layer or a lower one.
- `opdlight/losses` imports the standard library, torch, `opdlight.types` and `opdlight.bounds` only.
- `envs` (imported as `opdlight.envs`) imports of opdlight only `types`, `bounds` and `errors`.
- Only `opdlight/rollout/engines/vllm_start.py` imports vllm and only `ray_start.py` beside it ray, and inside a
  function, so that everything else works without them. `vllm_top_p.py` may import vllm, for vLLM itself loads it;
  nothing imports that file.
- There is no circle between files, imports inside functions and for types included.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from opdlight.system.arguments import argument_parser

LAYERS = (
    ("types", "bounds", "errors"),
    ("config", "losses", "metrics", "system", "batch", "envs"),
    ("data", "models", "run_folder", "report"),
    ("rollout",),
    ("distillation",),
    ("callbacks", "doctor", "sft", "evaluate", "tasks"),
    ("train", "lab", "api"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
OPTIONAL = {
    "vllm": Path("opdlight/rollout/engines/vllm_start.py"),
    "ray": Path("opdlight/rollout/engines/ray_start.py"),
}
LOADED_BY_VLLM = Path("opdlight/rollout/engines/vllm_top_p.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported module: its dotted name, the line, and whether it happens inside a function."""

    name: str
    line: int
    lazy: bool


def violations(root: Path) -> list[str]:
    """One message for each violation, `file:line: why`, over opdlight/, envs/ and tools/ below `root`."""
    found = []
    graph: dict[str, set[str]] = {}
    for folder in ("opdlight", "envs", "tools"):
        for path in sorted((root / folder).rglob("*.py")):
            file = path.relative_to(root)
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(file))
            package = file.parent.parts  # of a module and of an __init__.py alike
            if (room := _room_of_file(file)) not in (*LEVEL, None):
                found.append(
                    f"{file}:1: the room `{room}` has no layer yet; place it in LAYERS of tools/check_layers.py"
                )
                continue
            graph[str(file)] = set()
            for item in imports(tree, package):
                found += [f"{file}:{item.line}: {why}" for why in _judge(file, room, item)]
                graph[str(file)] |= {str(target) for target in _file_of(root, item.name)}
    return found + circle(graph)


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """A message for one circle of a graph of files, file → files that it imports; none if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        files = error.args[1][::-1]  # each one imports the next
        return [f"{files[0]}:1: a circle of imports: {' → '.join(files)}"]
    return []


def imports(tree: ast.AST, package: tuple[str, ...], lazy: bool = False) -> Iterator[Import]:
    """Every import in a module of `package`; `from a import b` gives `a.b`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(name=alias.name, line=node.lineno, lazy=lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(name=f"{base}.{alias.name}", line=node.lineno, lazy=lazy) for alias in node.names)
        else:
            inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(node, package, inside)


def _judge(file: Path, room: str | None, item: Import) -> Iterator[str]:
    top = item.name.partition(".")[0]
    target = _room_of_name(item.name)
    if item.name.startswith(".".join(LOADED_BY_VLLM.with_suffix("").parts)):
        yield f"imports {item.name}, which only vLLM may load, by its name"
    if top == "vllm" and file == LOADED_BY_VLLM:
        pass
    elif file != OPTIONAL.get(top, file):
        yield f"imports {top}; only {OPTIONAL[top]} may, so that everything else works without it"
    elif top in OPTIONAL and not item.lazy:
        yield f"imports {top} at the top of the file; import it inside the function that needs it"
    if room == "envs" and top == "opdlight" and target not in ("types", "bounds", "errors", "envs"):
        yield f"envs imports {item.name}; of opdlight, environments may import types, bounds and errors only"
    elif (
        room == "losses"
        and top not in sys.stdlib_module_names
        and top != "torch"
        and target not in ("types", "bounds", "losses")
    ):
        yield f"losses imports {item.name}; losses may import the standard library, torch, types and bounds only"
    elif room in LEVEL and target in LEVEL and LEVEL[target] > LEVEL[room]:
        yield f"{room} (layer {LEVEL[room]}) imports {item.name} (layer {LEVEL[target]}); imports go down only"


def _file_of(root: Path, name: str) -> list[Path]:
    """The file of an imported name, a module or what a module defines; empty if it is none of opdlight's."""
    parts = name.split(".")
    if parts[0] != "opdlight":
        return []
    parts = parts[1:] if parts[1:2] == ["envs"] else parts  # opdlight/envs is a link
    for count in range(len(parts), 0, -1):
        base = Path(*parts[:count])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if (root / file).is_file():
                return [file]
    return []


def _room_of_file(file: Path) -> str | None:
    """The room of a file; None where no layer holds (tools/, opdlight/__init__.py and __main__.py)."""
    if file.parts[0] == "opdlight":
        room = file.with_suffix("").parts[1]
        return None if room in ("__init__", "__main__") else room
    return "envs" if file.parts[0] == "envs" else None


def _room_of_name(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "opdlight" and len(parts) > 1 else None


def main() -> None:
    """Check this repository."""
    argument_parser(__doc__).parse_args()
    found = violations(Path(__file__).resolve().parents[1])
    print("\n".join(found) if found else "layers: imports go one way")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
