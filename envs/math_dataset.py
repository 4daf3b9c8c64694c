"""Mathematics questions from a file or from the Hugging Face hub: DAPO-Math-17K, GSM8K, MATH-500 or your own rows."""

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opdlight.envs.base import unknown_name
from opdlight.envs.grading import Verdict, compare
from opdlight.envs.question import INSTRUCTION, AnswerFormat, QuestionEnv, last_boxed
from opdlight.errors import ConfigError, MissingDependencyError

_tables: dict[tuple[str, ...], "list[Row]"] = {}
_loading = threading.Lock()


class Row(NamedTuple):
    """One question; `solution` is the worked text that stood before the answer, often empty."""

    question: str
    answer: str
    solution: str


class MathDatasetEnv(QuestionEnv):
    r"""One row: `seed` modulo the number of rows. Keep training and held-out rows in different files or splits.

    `path` is a .jsonl or .parquet file, or the name of a `datasets` data set (`split` and `subset` are for these only).
    `question` and `answer` name columns; dots reach into nested ones. An answer column may hold a worked solution that
    ends in `#### 42` or contains `\boxed{42}`. `remove` lists texts to cut out of every question, such as a data set's
    own instructions. Examples:
    GSM8K `path="openai/gsm8k", subset="main", split="train"`; MATH-500 `path="test.jsonl", question="problem"`;
    DAPO-Math-17K `path="dapo.parquet", question="prompt.0.content", answer="reward_model.ground_truth"`.
    """

    def __init__(
        self,
        path: str,
        split: str | None = None,
        question: str = "question",
        answer: str = "answer",
        subset: str | None = None,
        remove: Sequence[str] = (),
        instruction: str = INSTRUCTION,
        answer_format: AnswerFormat = "boxed",
    ) -> None:
        """Load the rows, once per process, and check the columns."""
        super().__init__(instruction, answer_format)
        self.rows = load_rows(path, split, subset, question, answer)
        self.remove = tuple(remove)

    def pose(self, seed: int) -> str:
        """The question of the row, without the texts to remove."""
        self.row = self.rows[seed % len(self.rows)]
        text = self.row.question
        for part in self.remove:
            text = text.replace(part, "")
        return text.strip()

    def judge(self, answer: str) -> Verdict:
        """Equal as a number, as text or by math-verify."""
        return compare(answer, self.row.answer)

    def expert_action(self) -> str:
        """The worked solution, where the rows have one, and the answer."""
        thought = f"<think>{self.row.solution}</think>" if self.row.solution else ""
        return f"{thought}\\boxed{{{self.row.answer}}}"


def load_rows(path: str, split: str | None, subset: str | None, question: str, answer: str) -> list[Row]:
    """The rows of a file or data set, read once per process; errors name the argument that is wrong."""
    key = (path, split or "", subset or "", question, answer)
    with _loading:
        if key not in _tables:
            _tables[key] = [_row(raw, n, question, answer) for n, raw in enumerate(_read(path, split, subset), start=1)]
            if not _tables[key]:
                del _tables[key]
                raise ConfigError.wrong("path", expected="a data set with at least one row", got=path)
        return _tables[key]


def _read(path: str, split: str | None, subset: str | None) -> Iterable[dict[str, Any]]:
    readers: dict[str, Callable[[Path], Iterable[dict[str, Any]]]] = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    suffix = Path(path).suffix
    if suffix not in readers:
        if suffix in {".json", ".csv", ".txt"} or Path(path).exists():
            raise ConfigError.wrong("path", expected="a .jsonl or .parquet file or the name of a data set", got=path)
        return _read_hub(path, split, subset)
    for name, value in (("split", split), ("subset", subset)):
        if value is not None:
            raise ConfigError.wrong(name, expected="null, because `path` is a file", got=value)
    if not Path(path).is_file():
        raise ConfigError.wrong("path", expected="an existing file", got=path)
    return readers[suffix](Path(path))


def _read_jsonl(path: Path) -> Iterable[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError.wrong(
                    "path", expected=f"JSON on line {number} of {path} ({error})", got=line[:80]
                ) from error
            if not isinstance(row, dict):
                raise ConfigError.wrong("path", expected=f"a JSON object on line {number} of {path}", got=line[:80])
            yield row


def _read_parquet(path: Path) -> Iterable[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(f"Reading {path} needs the package pyarrow: pip install pyarrow") from error
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def _read_hub(name: str, split: str | None, subset: str | None) -> Iterable[dict[str, Any]]:
    if split is None:
        raise ConfigError.wrong("split", expected=f"a split of the data set {name!r}, such as 'train'", got=None)
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"`path` {name!r} is no .jsonl or .parquet file, and data sets by name need the package datasets: "
            "pip install datasets"
        ) from error
    rows: Iterable[dict[str, Any]] = datasets.load_dataset(name, subset, split=split)
    return rows


def _row(raw: dict[str, Any], number: int, question: str, answer: str) -> Row:
    text = _column(raw, "question", question, number)
    worked = _column(raw, "answer", answer, number).strip()
    solution, _, target = worked.rpartition("####")
    if not solution and (boxed := last_boxed(worked)) is not None:
        solution, target = worked, boxed
    if not text.strip() or not target.strip():
        empty = "answer" if text.strip() else "question"
        raise ConfigError.wrong(empty, expected=f"a column with text in every row (row {number} is empty)", got=raw)
    return Row(text, target.strip(), solution.strip())


def _column(raw: dict[str, Any], argument: str, column: str, number: int) -> str:
    """The text at a dotted path: names step into objects, numbers into lists."""
    value: Any = raw
    for part in column.split(".") if column not in raw else [column]:
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            raise unknown_name(argument, part, value.keys() if isinstance(value, dict) else raw.keys())
    if not isinstance(value, str | int | float):
        raise ConfigError.wrong(argument, expected=f"a column of texts or numbers (row {number})", got=value)
    return str(value)
