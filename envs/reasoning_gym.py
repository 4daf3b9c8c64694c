"""Any reasoning-gym data set as a single-turn task: procedural questions, graded strictly."""

import ast
import dataclasses
import datetime
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any

from opdlight.envs.arithmetic import as_decimal, unfinished
from opdlight.envs.base import on_side_of, redraw, unknown_name
from opdlight.envs.grading import Verdict, judge
from opdlight.envs.question import INSTRUCTION, AnswerFormat, QuestionEnv
from opdlight.errors import ConfigError, MissingDependencyError, NoExpertError

MAX_DRAWS = 200  # a held-out seed keeps one draw in four: a set with enough questions fails with chance 1e-25
_SUM = re.compile(r"-?[\d.]+(?: [+-] -?[\d.]+)*")
_ACCEPTS_ANYTHING = frozenset({"game_of_life_halting"})  # its scorer compares bool(text): only the stored answer counts
_EVALUATES_TEXT = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})  # eval(answer)
_PARSES_FORMULA = frozenset(  # sympy.parse_expr(answer), which can call any builtin
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
_KNOWN_NAME = re.compile(r"\w|a?(sin|cos|tan)h?|csc|sec|cot|exp|log|sqrt|pi", re.ASCII)


class ReasoningGymEnv(QuestionEnv):
    r"""One question of a reasoning-gym data set, drawn from the seed; the answer belongs in `\boxed{}`.

    Training and held-out seeds never share a question (`on_side_of`); small sets may repeat questions within a side.
    A few sets are not functions of their seed across processes, for reasons in the package: `isomorphic_strings`,
    `polynomial_multiplication`, `ransom_note` and `word_ladder` follow PYTHONHASHSEED, `time_intervals` today's date,
    `codeio` the clock. `arc_agi`, `codeio`, `figlet_font`, `group_anagrams`, `word_ladder` need 0.1 to 0.5 s a draw,
    `futoshiki` and `knight_swap` up to seconds; the others well under 0.05 s.

    `params` are those of the data set's config, as YAML writes them: names of enum members, ISO dates and times,
    mappings for nested configs. Several data sets in one:
    `dataset="composite", params={"datasets": [{"name": "gcd", "weight": 1, "config": {}}, …]}`.
    """

    source, licence = "generated", "Apache-2.0"

    def __init__(
        self,
        dataset: str,
        params: Mapping[str, Any] | None = None,
        instruction: str = INSTRUCTION,
        answer_format: AnswerFormat = "boxed",
    ) -> None:
        """Check the name and the parameters of the data set; nothing is generated yet."""
        super().__init__(instruction, answer_format)
        self.dataset, self.params = dataset, dict(params or {})
        config_of("params", dataset, self.params)

    def pose(self, seed: int) -> str:
        """The first question on the side of `seed` among the items of data sets created with its redraws."""
        for attempt in range(MAX_DRAWS):
            self._source = _create(self.dataset, self.params, redraw(seed, attempt))
            self._entry: dict[str, Any] = self._source[0]
            self._name, self._of = self.dataset, self.params
            if self.dataset == "composite":  # the rest is as if the data set that was drawn were alone
                self._name = self._entry["metadata"]["source_dataset"]
                self._of = next(d["config"] for d in self.params["datasets"] if d["name"] == self._name)
                self._source = self._source.datasets[self._name]
            question = str(self._entry["question"]).strip()
            if on_side_of(seed, question):
                return question
        expected = f"wide enough for different training and held-out questions of {self.dataset!r}"
        raise ConfigError.wrong("params", expected=expected, got=self.params)  # no episode could begin: the run ends

    def judge(self, answer: str) -> Verdict:
        """Equal to the stored answer as text or as a decimal, or worth 1.0 to the data set's own scorer.

        Where the stored answer is a number, one that still has to be computed is wrong (`arithmetic.unfinished`).
        Scorers run in the worker process: they loop, exhaust memory (`rubiks_cube` on a large number) and raise.
        """
        from reasoning_gym.dataset import ProceduralDataset

        stored = self._entry["answer"]
        stored = None if stored is None else str(stored).strip()
        value = as_decimal(answer)
        if answer == stored or (value is not None and stored is not None and value == as_decimal(stored)):
            return Verdict(correct=True)
        inherited = type(self._source).score_answer is ProceduralDataset.score_answer  # 1.0 for the stored text only
        if inherited or self._sum() or self._name in _ACCEPTS_ANYTHING or unfinished(answer, stored or ""):
            return Verdict(correct=False)
        if self._name in _PARSES_FORMULA and not is_formula(answer):
            return Verdict(correct=False)
        return judge(score, self._name, self._of, answer, self._entry, imports=("reasoning_gym",))

    def expert_action(self) -> str:
        """A worked left-to-right solution for sums and differences; the stored answer for the other data sets.

        Where an answer need not be boxed, a sum is worked in plain text, as a model that never boxes would write it.
        """
        answer = self._entry["answer"]
        if answer is None:
            raise NoExpertError(f"The reasoning-gym data set {self._name!r} stores no answer to demonstrate.")
        steps = worked_sum(expression) if (expression := self._sum()) else ""
        if steps and self.answer_format == "boxed_or_last_number":
            return steps
        return (f"<think>{steps}</think>" if steps else "") + f"\\boxed{{{answer}}}"

    def _sum(self) -> str:
        """The expression to compute if it holds only numbers, + and -, else an empty string."""
        expression = str(self._entry.get("metadata", {}).get("expression", ""))
        asks_for_value = as_decimal(str(self._entry["answer"])) is not None  # `countdown` asks for the expression
        return expression if asks_for_value and _SUM.fullmatch(expression) else ""


def worked_sum(expression: str) -> str:
    """The steps of a sum from left to right; an empty string where there is nothing to add.

    >>> worked_sum("12 + 7 - 4")
    '12 + 7 = 19; 19 - 4 = 15'
    """
    first, *rest = expression.split(" ")
    total, steps = Decimal(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = total + Decimal(term) if sign == "+" else total - Decimal(term)
        steps.append(f"{total:f} {sign} {term} = {result:f}")
        total = result
    return "; ".join(steps)


def is_formula(text: str) -> bool:
    """True if `text` holds only numbers, operators, one-letter symbols and known functions: nothing to execute.

    >>> is_formula("3*x**2 + exp(x) + C"), is_formula("exec(1)"), is_formula("x.y")
    (True, False, False)
    """
    names = re.findall(r"[^\W\d]\w*", text)
    safe_characters = re.fullmatch(r"(?:[\w\s+\-*/^(),=]|(?<=\d)\.|\.(?=\d))*", text, re.ASCII) is not None
    return safe_characters and all(_KNOWN_NAME.fullmatch(name) for name in names)


def score(dataset: str, params: dict[str, Any], answer: str, entry: dict[str, Any]) -> bool:
    """True if the data set's scorer gives 1.0; call it through `judge`, it may never return."""
    source = _create(dataset, params, 0)
    if dataset in _EVALUATES_TEXT:
        vars(sys.modules[type(source).__module__])["eval"] = ast.literal_eval  # shadows the builtin in that module
    return bool(source.score_answer(answer, entry) >= 1.0)


def _create(dataset: str, params: Mapping[str, Any], seed: int) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(dataset, **config_of("params", dataset, params), seed=seed, size=1)


def config_of(key: str, dataset: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a data set's config class, of the types that it wants.

    Raises:
        ConfigError: naming what is unknown or wrong in `params`, which the config has at `key`.
        MissingDependencyError: if reasoning-gym is not installed.
    """
    try:
        import reasoning_gym  # noqa: F401  (fills the registry)
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MissingDependencyError("This task needs the package reasoning-gym: pip install reasoning-gym") from error
    if dataset not in DATASETS:
        raise unknown_name("dataset" if key == "params" else key.replace(".config", ".name"), dataset, DATASETS)
    config_class = DATASETS[dataset][1]
    hints = typing.get_type_hints(config_class)
    known = {f.name: f.default for f in dataclasses.fields(config_class) if f.name not in ("seed", "size")}
    for name in params:
        if name not in known:
            raise unknown_name(f"{key}.{name}", name, known)
    arguments = {  # two annotations contradict their own default
        name: value if type(value) is type(known[name]) else _typed(f"{key}.{name}", value, hints[name])
        for name, value in params.items()
    }
    try:
        config = config_class(**arguments, seed=0, size=1)
        if hasattr(config, "validate"):  # two configs have none
            config.validate()
    except Exception as error:  # what a config makes of wrong values is an error of any class
        reason = str(error) or type(error).__name__
        raise ConfigError.wrong(key, expected=f"valid for {dataset!r} ({reason})", got=dict(params)) from error
    for number, part in enumerate(params["datasets"] if dataset == "composite" else ()):
        if part["name"] == "composite":
            raise ConfigError.wrong(f"{key}.datasets[{number}].name", expected="no composite itself", got="composite")
        config_of(f"{key}.datasets[{number}].config", part["name"], part["config"])
    return arguments


def _typed(key: str, value: Any, hint: Any) -> Any:
    """A value of YAML as the type that a config class wants; what it does not name is left to the class."""
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (list, tuple) and isinstance(value, Sequence) and not isinstance(value, str):
        item = inner[0] if inner and origin is list else Any
        return origin(_typed(f"{key}[{i}]", v, item) for i, v in enumerate(value))
    wrong = ConfigError.wrong(key, expected=f"a value of type {getattr(origin, '__name__', origin)}", got=value)
    try:
        if dataclasses.is_dataclass(origin) and isinstance(origin, type) and isinstance(value, Mapping):
            hints = typing.get_type_hints(origin)
            return origin(**{n: _typed(f"{key}.{n}", v, hints.get(n, Any)) for n, v in value.items()})
        if isinstance(value, str) and origin in (datetime.date, datetime.time):
            return origin.fromisoformat(value)
        if isinstance(value, str) and isinstance(origin, type) and issubclass(origin, Enum):
            return origin[value] if value in origin.__members__ else origin(value)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{wrong} ({error})") from error
    if origin in (int, float, bool, str, list, tuple, dict) or dataclasses.is_dataclass(origin):
        number = origin is float and isinstance(value, int)
        if not (number or isinstance(value, origin)) or (isinstance(value, bool) and origin is not bool):
            raise wrong
    return value
