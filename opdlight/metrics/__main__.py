"""Explain the logged keys: `python -m opdlight.metrics [words]`."""

import argparse

from rich.table import Column

from opdlight.metrics.glossary import GLOSSARY, search
from opdlight.system.console import show, table


def main() -> None:
    """Print the glossary: `python -m opdlight.metrics [words]`."""
    parser = argparse.ArgumentParser(prog="python -m opdlight.metrics", description="The glossary of every logged key.")
    parser.add_argument(
        "words", nargs="*", help="show only entries that contain each word in key or meaning, such as coverage"
    )
    words = parser.parse_args().words
    found = search(words)
    if not found:
        groups = ", ".join(sorted({key.split("/")[0] for key in GLOSSARY}))
        parser.error(f"no entry has {' and '.join(map(repr, words))} in its key or meaning; groups of keys: {groups}")
    shown = table(Column("key", no_wrap=True, overflow="fold"), "meaning", "unit", "estimator", "healthy")
    for key, e in found.items():
        shown.add_row(key, e.meaning, e.unit, e.estimator, e.healthy)
    show(shown)


if __name__ == "__main__":
    main()
