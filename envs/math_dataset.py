"""Mathematics questions from a file or from the Hugging Face hub: DAPO-Math-17K, GSM8K, MATH-500 or your own rows."""

import difflib
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from opdlight.envs.base import FIRST_HELD_OUT_SEED, HELD_OUT_SHARE, About, on_side_of, unknown_name
from opdlight.envs.grading import Verdict, compare
from opdlight.envs.question import INSTRUCTION, AnswerFormat, QuestionEnv, last_boxed
from opdlight.envs.rows import SHOWN, Row, beside, check_text, is_hub_name, missing_rows, read_rows
from opdlight.errors import ConfigError

log = logging.getLogger(__name__)
_loading = threading.Lock()


class Question(NamedTuple):
    """One row; `solution` is the worked text that stood before the answer, often empty."""

    question: str
    answer: str
    solution: str


class Source(NamedTuple):
    """Where rows come from, and which of their columns count; `key` names the argument in errors."""

    key: str
    path: str
    split: str | None
    subset: str | None
    question: str
    answer: str


class MathDatasetEnv(QuestionEnv):
    r"""One row, chosen by the seed: seeds below 10⁹ show training rows, the others held-out rows, in order and again.

    `path` is a .jsonl or .parquet file, or the name of a `datasets` data set (`split` and `subset` are for these only).
    `question` and `answer` name columns; dots reach into nested ones. An answer column may hold a worked solution that
    ends in `#### 42` or contains `\boxed{42}`. `remove` lists texts to cut out of every question, such as a data set's
    own instructions. `held_out` says where the held-out rows are, by any of `path`, `split`, `subset`, `question` and
    `answer`; what it leaves out is as for the training rows. Examples:
    GSM8K `path="openai/gsm8k", subset="main", split="train", held_out={"split": "test"}`;
    DAPO-Math-17K `path="dapo.parquet", question="prompt.0.content", answer="reward_model.ground_truth"`;
    MATH-500, to evaluate only, `held_out={"path": "test.jsonl", "question": "problem"}`.

    Without `held_out` one question in four is held out, by a hash of its text: the same on every machine and in any
    order of the rows, and rows that ask the same are on the same side. With it, training rows whose question is also
    held out are left out, with a warning. Without `path` there are no training rows, and every seed shows a held-out
    one.
    """

    licence = "of its rows"

    def __init__(
        self,
        path: str | None = None,
        split: str | None = None,
        question: str = "question",
        answer: str = "answer",
        subset: str | None = None,
        remove: Sequence[str] = (),
        held_out: Mapping[str, Any] | None = None,
        instruction: str = INSTRUCTION,
        answer_format: AnswerFormat = "boxed",
        prompt_template: str | None = None,
    ) -> None:
        """Load the rows, once per process, and check the columns."""
        super().__init__(instruction, answer_format, prompt_template)
        if path is None and not (held_out or {}).get("path"):
            raise ConfigError.wrong("path", expected="a file or the name of a data set (or `held_out.path`)", got=None)
        own = None if path is None else Source("path", path, split, subset, question, answer)
        other = None if held_out is None else _held_out_source(held_out, own, question, answer)
        with _loading:
            self.training, self.held_out = divide(own, other, tuple(remove))
        self.training_episodes, self.held_out_episodes = len(self.training), len(self.held_out)

    @classmethod
    def about(cls, *, path: str | None = None, held_out: Mapping[str, Any] | None = None, **arguments: Any) -> About:
        """The files or data sets that the rows come from; nothing is read."""
        paths = [str(p) for p in (path, (held_out or {}).get("path")) if p]
        return replace(
            super().about(**arguments),
            source=" + ".join(Path(p).name for p in paths) or "questions of your own",
            finite=True,
            slow="may download the rows" if any(is_hub_name(p) for p in paths) else "",
            missing=tuple(dict.fromkeys(why for p in paths if (why := missing_rows(p)))),
        )

    def pose(self, seed: int) -> str:
        """The question of the row, without the texts to remove."""
        rows = self.training if seed < FIRST_HELD_OUT_SEED and self.training else self.held_out
        self.row = rows[seed % FIRST_HELD_OUT_SEED % len(rows)]
        return self.row.question

    def judge(self, answer: str) -> Verdict:
        """Equal as a number, as text or by math-verify."""
        return compare(answer, self.row.answer)

    def expert_action(self) -> str:
        """The worked solution, where the rows have one, and the answer."""
        thought = f"<think>{self.row.solution}</think>" if self.row.solution else ""
        return f"{thought}\\boxed{{{self.row.answer}}}"


@lru_cache(maxsize=64)
def divide(
    training: Source | None, held_out: Source | None, remove: tuple[str, ...]
) -> tuple[Sequence[Question], Sequence[Question]]:
    """The training and the held-out rows; no question is on both sides. Read once per process.

    Raises:
        ConfigError: if a row is malformed, or one of the sides would have no row.
    """
    rows = load_rows(training, remove) if training else []
    if held_out is not None:
        held = load_rows(held_out, remove)
        known = {_same(row) for row in held}
        own = [row for row in rows if _same(row) not in known]
        if rows and not own:
            raise ConfigError.wrong("held_out", expected="other questions than those of `path`", got=held_out.path)
        if len(own) < len(rows):
            log.warning(
                "%d of the %d training questions of %s are held out too (%s): they are not trained on.",
                len(rows) - len(own), len(rows), training and training.path, held_out.path,
            )  # fmt: skip
        return own, held
    sides = [[row for row in rows if on_side_of(seed, _same(row))] for seed in (0, FIRST_HELD_OUT_SEED)]
    for name, side in zip(("training", "held-out"), sides, strict=True):
        if not side:
            expected = (
                f"where the held-out rows are, because one question in {HELD_OUT_SHARE}, by hash, of the {len(rows)} "
                f"rows of {training and training.path} leaves no {name} row"
            )
            raise ConfigError.wrong("held_out", expected=expected, got=None)
    return sides[0], sides[1]


def _same(row: Question) -> str:
    """A key that is equal for two rows that ask the same question."""
    return " ".join(row.question.split())


def _held_out_source(given: Mapping[str, Any], own: Source | None, question: str, answer: str) -> Source:
    names = [name for name in Source._fields if name != "key"]
    for name, value in given.items():
        if name not in names:
            raise unknown_name(f"held_out.{name}", str(name), names)
        if not isinstance(value, str) and (value is not None or name not in ("split", "subset")):
            raise ConfigError.wrong(f"held_out.{name}", expected="a text", got=value)
    same = own is not None and given.get("path", own.path) == own.path
    usual = own._asdict() if own is not None and same else {"split": None, "subset": None}
    return Source(**{**usual, "question": question, "answer": answer, **given, "key": "held_out.path"})


def load_rows(source: Source, remove: tuple[str, ...]) -> list[Question]:
    """The rows of a file or data set; errors name the argument that is wrong, the file and the line."""
    raw = read_rows(source.path, source.split, source.subset, source.key)
    count, rows = 0, dict[Question, None]()
    for count, row in enumerate(raw, start=1):  # noqa: B007
        rows[_question(row, source, remove)] = None
    if not rows:
        raise ConfigError.wrong(source.key, expected="a data set with at least one row", got=source.path)
    if len(rows) < count:  # as on the Hub, where DAPO-Math-17K has many copies of each
        log.warning("%d of the %d rows of %s repeat another one: left out.", count - len(rows), count, source.path)
    return list(rows)


def _question(row: Row, source: Source, remove: tuple[str, ...]) -> Question:
    text = _column(row, beside(source.key, "question"), source.question)
    for part in remove:
        text = text.replace(part, "")
    worked = _column(row, beside(source.key, "answer"), source.answer).strip()
    solution, _, target = worked.rpartition("####")
    if not solution and (boxed := last_boxed(worked)) is not None:
        solution, target = worked, boxed
    for name, found in (("question", text), ("answer", target)):
        if not found.strip():
            expected = f"a column with text in every row ({row.where} is empty)"
            raise ConfigError.wrong(beside(source.key, name), expected=expected, got=_shown(row.values))
    return Question(text.strip(), target.strip(), solution.strip())


def _column(row: Row, key: str, column: str) -> str:
    """The text at a dotted path: names step into objects, numbers into lists."""
    value: Any = row.values
    for part in column.split(".") if column not in row.values else [column]:
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            names = [str(name) for name in value] if isinstance(value, dict) else []
            near = difflib.get_close_matches(part, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there: {', '.join(sorted(names)) or _shown(value)}"
            raise ConfigError.wrong(key, expected=f"a column of {row.where} ({hint})", got=column)
    finite = not isinstance(value, float) or math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not finite:
        raise ConfigError.wrong(key, expected=f"a column of texts or numbers ({row.where})", got=_shown(value))
    check_text(str(value), row.where, key)
    return str(value)


def _shown(value: object) -> str:
    """The beginning of a value, for an error."""
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
