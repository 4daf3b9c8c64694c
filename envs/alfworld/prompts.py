"""What the language model reads and how its answer is understood."""

from collections.abc import Sequence

CONVERSATION = (
    "Solve the task in this room. Answer with one action: go to X, open X, close X, take O from X, move O to X, use O, "
    "clean O with X, heat O with X, cool O with X, examine O, inventory or look."
)
HISTORY = 2  # past steps that the paper's prompt shows
BANNER = "-= Welcome to TextWorld, ALFRED! =-\n\n"


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
