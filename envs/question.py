"""Single-turn questions: what is the answer in a completion, and one step that grades it."""

import re
from abc import abstractmethod
from typing import Any, Literal, get_args

from opdlight.envs.arithmetic import as_decimal
from opdlight.envs.base import TextEnv, after_thinking
from opdlight.envs.grading import Verdict
from opdlight.envs.templates import PromptTemplate
from opdlight.errors import ConfigError

INSTRUCTION = r"Put your final answer in \boxed{}."
AnswerFormat = Literal["boxed", "boxed_or_last_number"]
_BOX_OR_BRACE = re.compile(r"\\+(?:boxed\s*\{|.)|[{}]", re.DOTALL)  # a run of backslashes is one token: no second scan
_DIGITS = r"(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_EXPONENT = r"\^\s?(?:\{[-\u2212]?\d+\}|[-\u2212]?\d+)"
_NUMBER = re.compile(
    r"(?<![\w.])[-\u2212]?"
    r"(?:\\[dt]?frac\{[-\u2212]?\d+\}\{\d+\}"
    rf"|{_DIGITS}(?:[eE][-+\u2212]?\d+|\s?(?:\\times|\\cdot|[×·])\s?10{_EXPONENT}|{_EXPONENT}|\s?/\s?\d+)?)"
)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}`, with balanced braces.

    >>> last_boxed(r"\boxed{1} so \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    open_braces: list[int | None] = []  # where a box's content starts; None for a brace that opens no box
    content: tuple[int, int] = (-1, -1)
    for token in _BOX_OR_BRACE.finditer(text):
        backslashes = len(token[0]) - len(token[0].lstrip("\\"))
        opens_box = backslashes > 0 and token[0].endswith("{") and token[0][backslashes:] != "{"
        last = "" if backslashes % 2 else token[0][-1]  # an odd backslash escapes the brace behind it: \{
        if opens_box:
            open_braces.append(token.end())
        elif last == "{":
            open_braces.append(None)
        elif last == "}" and open_braces and (start := open_braces.pop()) is not None:
            content = max(content, (start, token.start() + backslashes))
    return text[slice(*content)].strip() if content[0] >= 0 else None


def last_number(text: str) -> str | None:
    r"""The last number in a text, in the form in which it is compared: −5 → -5, 1e5 and 10^5 → 100000, 3/4 as it is.

    >>> last_number("It is 1e5."), last_number("so x = \u22125"), last_number("12 + 7 = 19 or 3/4")
    ('100000', '-5', '3/4')
    """
    found = [match[0] for match in _NUMBER.finditer(text)]
    if not found:
        return None
    number = found[-1].rstrip(",").replace("\u2212", "-").replace(" ", "")
    value = as_decimal(number) if re.search("[eE^]", number) else None
    return str(value.numerator) if value is not None and value.denominator == 1 else number


def extract_answer(text: str, answer_format: AnswerFormat = "boxed") -> str | None:
    r"""The answer in a completion: the last `\boxed{…}` after the thinking, or None.

    With "boxed_or_last_number" a text that boxes nothing answers with its last number (for models that never box).
    """
    said = after_thinking(text)
    if said is None:
        return None
    boxed = last_boxed(said)
    if boxed is None and answer_format == "boxed_or_last_number":
        return last_number(said)
    return boxed or None


class QuestionEnv(TextEnv):
    """An episode of one question and one answer. Subclasses pose the question of a seed and judge the answer.

    Args:
        instruction: text below the question; empty for none.
        answer_format: where the answer is looked for.
        prompt_template: a file with the words around the question (`envs/templates.py`); its slots are `question` and
            `instruction`. None: the question, and the instruction on the next line.
    """

    def __init__(self, instruction: str, answer_format: AnswerFormat, prompt_template: str | None = None) -> None:
        super().__init__()
        if answer_format not in get_args(AnswerFormat):
            raise ConfigError.wrong("answer_format", expected=f"one of {get_args(AnswerFormat)}", got=answer_format)
        self.instruction = instruction
        self.answer_format: AnswerFormat = answer_format
        self._template = None
        if prompt_template is not None:
            example = {"question": "What is 1 + 1?", "instruction": instruction}
            self._template = PromptTemplate.read(prompt_template, [example], required=["question"])

    @abstractmethod
    def pose(self, seed: int) -> str:
        """Draw the question of `seed`, remember its answer, return its text without the instruction."""

    @abstractmethod
    def judge(self, answer: str) -> Verdict:
        """Grade an answer that was extracted from a completion."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The question of `seed`, followed by the instruction; with a template, both where it puts them."""
        super().reset(seed=seed)
        question = self.pose(self.episode_seed(seed))
        if self._template is not None:
            return self._template.render(question=question, instruction=self.instruction), {}
        return (f"{question}\n{self.instruction}" if self.instruction else question), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Grade the completion; the episode is over. Reward 1 if right, else 0."""
        answer = extract_answer(action, self.answer_format)
        verdict = Verdict(correct=False) if answer is None else self.judge(answer)
        metrics = {
            "answer_found": float(answer is not None),
            "grader_timeouts": float(verdict.timed_out),
            "grader_errors": float(verdict.failed),
        }
        reply = "Correct." if verdict.correct else "Wrong." if answer is not None else "No answer was found."
        return reply, float(verdict.correct), True, False, {"success": verdict.correct, "metrics": metrics}
