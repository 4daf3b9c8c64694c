"""A task of one turn: a question, and whether the answer is right."""

from typing import Annotated

import gymnasium

from opdlight.bounds import Bounds
from opdlight.envs.base import on_side_of
from opdlight.envs.grading import Verdict
from opdlight.envs.question import QuestionEnv


class OneTurn(QuestionEnv):
    r"""The sum of two numbers. The answer is what stands in the last `\boxed{…}` after the thinking."""

    source, licence = "generated", "yours"  # as `python -m opdlight.tasks` lists them

    # `task.tasks.one_turn.env` sets these arguments; what they are annotated with is how they are checked
    def __init__(self, largest: Annotated[int, Bounds(at_least=9)] = 99, instruction: str = "") -> None:
        super().__init__(instruction, answer_format="boxed")
        self.largest = largest

    def pose(self, seed: int) -> str:
        """The question of a seed, drawn from `self.np_random`; training and held-out seeds share none."""
        while True:
            first, second = (int(number) for number in self.np_random.integers(self.largest + 1, size=2))
            question = f"State the final answer to the following arithmetic problem: {first} + {second} ="
            if on_side_of(seed, question):
                self.answer = str(first + second)
                return question

    def judge(self, answer: str) -> Verdict:
        """Whether the answer is right; `opdlight.envs.grading.compare` does it for formulas."""
        return Verdict(correct=answer == self.answer)

    def expert_action(self) -> str:
        """A right answer, for demonstrations (opdlight.sft); without one, leave this method out."""
        return f"\\boxed{{{self.answer}}}"


gymnasium.register(id="OneTurn-v0", entry_point=f"{__name__}:OneTurn")
