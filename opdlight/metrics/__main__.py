"""Explain the logged keys: `python -m opdlight.metrics [words]`."""

import argparse
from collections.abc import Sequence

from rich.table import Column

from opdlight.metrics.glossary import GLOSSARY, search, similar
from opdlight.system.console import show, table


def main() -> None:
    """Print the glossary: `python -m opdlight.metrics [words]`."""
    parser = argparse.ArgumentParser(prog="python -m opdlight.metrics", description="The glossary of every logged key.")
    parser.add_argument(
        "words", nargs="*", help="show only entries that contain each word in key or description, such as coverage"
    )
    words = parser.parse_args().words
    found = search(words)
    if not found:
        parser.error(_nothing(words))
    shown = table(Column("key", no_wrap=True, overflow="fold"), "meaning", "unit", "estimator", "healthy")
    for key, e in found.items():
        shown.add_row(key, e.meaning, e.unit, e.estimator, e.healthy)
    show(shown)


def _nothing(words: Sequence[str]) -> str:
    """What to try instead: words that do occur, and what no entry names."""
    near = list(dict.fromkeys(other for word in words if not search([word]) for other in similar(word)))
    return "; ".join(
        [
            f"no entry has {' and '.join(map(repr, words))} in its key or description",
            *([f"similar: {', '.join(near)}"] if near else []),
            f"groups of keys: {', '.join(sorted({key.split('/')[0] for key in GLOSSARY}))}",
            "{task} in a key stands for any task",
            "what can be configured: python -m opdlight.train --help",
        ]
    )


if __name__ == "__main__":
    main()
