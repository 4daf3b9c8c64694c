"""What the language model reads and how its answer is understood."""

import re
from collections.abc import Sequence

from opdlight.envs.base import after_thinking

CONVERSATION = (
    "Solve the task in this room. Answer with one action: go to X, open X, close X, take O from X, move O to X, use O, "
    "clean O with X, heat O with X, cool O with X, examine O, inventory or look."
)
HISTORY = 2  # past steps that the paper's prompt shows
BANNER = "-= Welcome to TextWorld, ALFRED! =-\n\n"


def parse_action(text: str, *, tags: bool) -> str | None:
    """The command in an answer, spaces normalised; None if there is none.

    It stands in the last `<action>…</action>` after the thinking; without `tags` the bare rest of the answer will do.
    """
    rest = after_thinking(text)
    if rest is None:
        return None
    tagged = re.findall(r"<action>(.*?)</action>", rest, flags=re.DOTALL)
    if not tagged and (tags or "<action>" in rest):
        return None
    return " ".join((tagged[-1] if tagged else rest).split()) or None


def paper_prompt(goal: str, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]) -> str:
    """One turn as a complete prompt: the task, the last observation–action pairs, what is seen, what can be done."""
    past = "".join(
        f"[Observation {n}: '{seen}', Action {n}: '{action}']\n"
        for n, (seen, action) in list(enumerate(history, start=1))[-HISTORY:]
    )
    steps = (
        f"You have taken {len(history)} steps so far. The last {min(HISTORY, len(history))} were:\n{past}"
        if past
        else ""
    )
    choices = ",\n".join(f"'{command}'" for command in admissible)
    return (
        f"You are an expert agent in the ALFRED embodied environment. Your task is to: {goal}.\n{steps}"
        f"You are now at step {len(history) + 1}. Your current observation is: {observation}\n"
        f"Your admissible actions are:\n[{choices}]\n\n"
        "First reason step by step about the situation, within <think> </think> tags. "
        "Then choose one admissible action and write it within <action> </action> tags."
    )
