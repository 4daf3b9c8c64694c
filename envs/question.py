"""Single-turn questions: what is the answer in a completion, and one step that grades it."""

import re
from abc import abstractmethod
from typing import Any, Literal, get_args

from opdlight.envs.base import TextEnv, after_thinking
from opdlight.envs.grading import Verdict
from opdlight.errors import ConfigError

INSTRUCTION = r"Put your final answer in \boxed{}."
AnswerFormat = Literal["boxed", "boxed_or_last_number"]
_BOX_OR_BRACE = re.compile(r"\\+boxed\s*\{|\\.|[{}]", re.DOTALL)  # an escaped brace is a token of its own: \{
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}`, with balanced braces.

    >>> last_boxed(r"\boxed{1} so \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    open_braces: list[int | None] = []  # where a box's content starts; None for a brace that opens no box
    content: tuple[int, int] = (-1, -1)
    for token in _BOX_OR_BRACE.finditer(text):
        if token[0].endswith("{") and not token[0].startswith("\\{"):
            open_braces.append(token.end() if token[0] != "{" else None)
        elif token[0] == "}" and open_braces and (start := open_braces.pop()) is not None:
            content = max(content, (start, token.start()))
    return text[slice(*content)].strip() if content[0] >= 0 else None


def extract_answer(text: str, answer_format: AnswerFormat = "boxed") -> str | None:
    r"""The answer in a completion: the last `\boxed{…}` after the thinking, or None.

    With "boxed_or_last_number" a text that boxes nothing answers with its last number (for models that never box).
    """
    said = after_thinking(text)
    if said is None:
        return None
    boxed = last_boxed(said)
    if boxed is None and answer_format == "boxed_or_last_number":
        numbers = _NUMBER.findall(said)
        return numbers[-1].rstrip(",") if numbers else None
    return boxed or None


class QuestionEnv(TextEnv):
    """One question, one answer. Subclasses pose the question of a seed and judge an extracted answer."""

    def __init__(self, instruction: str, answer_format: AnswerFormat) -> None:
        super().__init__()
        if answer_format not in get_args(AnswerFormat):
            raise ConfigError.wrong("answer_format", expected=f"one of {get_args(AnswerFormat)}", got=answer_format)
        self.instruction = instruction
        self.answer_format: AnswerFormat = answer_format

    @abstractmethod
    def pose(self, seed: int) -> str:
        """Draw the question of `seed`, remember its answer, return its text without the instruction."""

    @abstractmethod
    def judge(self, answer: str) -> Verdict:
        """Grade an answer that was extracted from a completion."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The question of `seed`, followed by the instruction."""
        super().reset(seed=seed)
        question = self.pose(int(self.np_random.integers(10**9)) if seed is None else seed)
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
