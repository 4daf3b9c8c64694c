"""Any reasoning-gym data set as a single-turn task: procedural questions, graded strictly."""

import ast
import dataclasses
import re
import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from opdlight.envs.arithmetic import as_decimal, unfinished
from opdlight.envs.base import on_side_of, redraw, unknown_name
from opdlight.envs.grading import Verdict, judge
from opdlight.envs.question import INSTRUCTION, AnswerFormat, QuestionEnv
from opdlight.errors import ConfigError, NoExpertError

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
    """

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
        _check(dataset, self.params)

    def pose(self, seed: int) -> str:
        """The first question on the side of `seed` among the items of data sets created with its redraws."""
        for attempt in range(MAX_DRAWS):
            self._source = _create(self.dataset, self.params, redraw(seed, attempt))
            self._entry: dict[str, Any] = self._source[0]
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
        if inherited or self._sum() or self.dataset in _ACCEPTS_ANYTHING or unfinished(answer, stored or ""):
            return Verdict(correct=False)
        if self.dataset in _PARSES_FORMULA and not is_formula(answer):
            return Verdict(correct=False)
        return judge(score, self.dataset, self.params, answer, self._entry, imports=("reasoning_gym",))

    def expert_action(self) -> str:
        """A worked left-to-right solution for sums and differences; the stored answer for the other data sets.

        Where an answer need not be boxed, a sum is worked in plain text, as a model that never boxes would write it.
        """
        answer = self._entry["answer"]
        if answer is None:
            raise NoExpertError(f"The reasoning-gym data set {self.dataset!r} stores no answer to demonstrate.")
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


def _create(dataset: str, params: dict[str, Any], seed: int) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(dataset, **params, seed=seed, size=1)


def _check(dataset: str, params: dict[str, Any]) -> None:
    import reasoning_gym  # noqa: F401  (fills the registry)
    from reasoning_gym.factory import DATASETS

    if dataset not in DATASETS:
        raise unknown_name("dataset", dataset, DATASETS)
    config_class = DATASETS[dataset][1]
    known = {field.name for field in dataclasses.fields(config_class)} - {"seed", "size"}
    for name in params:
        if name not in known:
            raise unknown_name(f"params.{name}", name, known)
    try:
        config = config_class(**params, seed=0, size=1)
        if hasattr(config, "validate"):  # two configs have none
            config.validate()
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError.wrong("params", expected=f"valid for {dataset!r} ({error})", got=params) from error
