"""A command line whose help is the docstring of its module, wrapped at the terminal's width."""

import argparse
import textwrap


def argument_parser(description: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows `description` in paragraphs; items of a list and commands keep lines of their own.

    Args:
        description: of the command.
        prog: its name; None: that of the script.
    """
    return argparse.ArgumentParser(prog=prog, description=description, formatter_class=_Paragraphs)


class _Paragraphs(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = [""]
        for line in text.strip().splitlines():
            if lines[-1] and line and not _begins(line):
                lines[-1] += f" {line.strip()}"
            else:
                lines.append(line)
        return "\n".join(line if _is_command(line) else _wrapped(line, width) for line in lines).strip()


def _begins(line: str) -> bool:
    """Is it an item or a command, not a line that continues the last one?"""
    return line.startswith("- ") or _is_command(line)


def _is_command(line: str) -> bool:
    """One to copy, which must stay in one piece."""
    return line.strip().removeprefix("Example: ").startswith("python ")


def _wrapped(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent="  " if line.startswith("- ") else "")
