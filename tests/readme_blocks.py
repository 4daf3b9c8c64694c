"""The fenced blocks of a README: files to write, Python to run, commands to check.

A `python` or `yaml` block whose first line is a comment with a file name is that file. In `bash` and `console` blocks
each command line counts; `<placeholder>` stands for anything, and a backslash joins lines.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("opdlight", "envs", "conf", "tests", "tools")
READMES = [Path("README.md"), *sorted(p.relative_to(ROOT) for room in ROOMS for p in (ROOT / room).rglob("README.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
NAME = re.compile(r"# ([\w./-]+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the block is; None if its first line names none."""
        found = NAME.match(self.text)
        return found[1] if found else None


def blocks(readme: Path, *languages: str) -> list[Block]:
    """The blocks of these languages, in order."""
    found = [Block(*match) for match in FENCE.findall((ROOT / readme).read_text(encoding="utf-8"))]
    return [block for block in found if block.language in languages]


def write_files(readme: Path, folder: Path) -> list[Path]:
    """Write every file that the README shows below `folder`."""
    files = []
    for block in blocks(readme, "python", "yaml"):
        if block.file:
            file = folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
            files.append(file)
    return files


def commands(readme: Path) -> list[list[str]]:
    """The words of every command line, without `$`, comments and environment variables; `opdlight` as `python -m`."""
    found = []
    for block in blocks(readme, "bash", "console"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if block.language == "console" and not line.startswith("$ "):
                continue  # what a command prints
            if words := words_of(line.removeprefix("$ ")):
                found.append(words)
    return found


def words_of(line: str) -> list[str]:
    """The words of one command line."""
    words = shlex.split(re.sub(r"<[^<>=]+>", "placeholder", line), comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    if words[:1] == ["opdlight"]:
        words = ["python", "-m", ".".join(words[:2]), *words[2:]]
    return words
