"""MiniGrid's partial view in words, and which actions do something there."""

from collections.abc import Sequence
from typing import Any

import gymnasium
from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT, STATE_TO_IDX

STATES = {number: word for word, number in STATE_TO_IDX.items()}
FREE = ("empty", "floor")  # nothing to speak of lies there
DIRECTIONS = {"Ahead": (0, -1), "Left": (-1, 0), "Right": (1, 0)}  # in the view, where the player looks up

RULES = """You walk through rooms on a grid and carry out a task. You see up to {ahead} cells ahead and {side} to each \
side; walls and closed doors hide what lies behind them. "a red ball 3 ahead, 1 left" lies 3 cells ahead of you and 1 \
to your left. You stand at a thing when it is in the next cell ahead; that is how you go to it.
"""
WHAT_THEY_DO = {
    "turn left": "turn by a quarter and stay in your cell.",
    "turn right": "turn by a quarter and stay in your cell.",
    "go forward": "go to the next cell ahead, if it is free, an open door or a goal. Lava ends the game.",
    "pick up": "take the key, ball or box in the next cell ahead. You can carry one thing.",
    "drop": "put what you carry into the next cell ahead, if it is free.",
    "toggle": "open or close the door in the next cell ahead; a locked one opens while you carry the key of its "
    "colour. A box gives way to what is in it.",
    "done": "say that you have finished.",
}


def rules(names: Sequence[str], view: int) -> str:
    """The system prompt for these actions and a view of `view` by `view` cells."""
    actions = "\n".join(f"{name}: {WHAT_THEY_DO[name]}" for name in names)
    answer = f"Every turn, answer with exactly one of these actions: {', '.join(names)}."
    return f"{RULES.format(ahead=view - 1, side=view // 2)}{actions}\n{answer}"


def describe(observation: dict[str, Any], env: gymnasium.Env[Any, Any]) -> str:
    """An observation in words: at first the task, then what is next, what is seen, and what is carried.

    Args:
        observation: with the partial view `image` [V,V,3] of object, colour and state, where the player stands in the
            middle of the last row and looks up (the cell holds what is carried), and the text `mission`.
        env: a MiniGrid environment.
    """
    image = observation["image"]
    middle, last = image.shape[0] // 2, image.shape[1] - 1
    seen = []
    for column in range(image.shape[0]):
        for row in range(image.shape[1]):
            ahead, right = last - row, column - middle
            if (ahead or right) and (thing := _thing(image[column, row])) is not None:
                seen.append((ahead + abs(right), -ahead, right, f"{thing} {_place(ahead, right)}"))
    carried = _thing(image[middle, last])
    nearest = " ".join(f"{name}: {_way(image, middle, last, *step)}." for name, step in DIRECTIONS.items())
    lines = [
        nearest,
        f"You see {'; '.join(text for *_, text in sorted(seen)) or 'no things'}.",
        f"You carry {carried or 'nothing'}.",
    ]
    if env.unwrapped.step_count == 0:  # type: ignore[attr-defined]
        lines.insert(0, f"Your task: {observation['mission']}.")
    return "\n".join(lines)


def effective(env: Any) -> list[bool]:
    """Which of MiniGrid's seven actions can change something now.

    Args:
        env: a BabyAI level without wrappers; other MiniGrid levels have rules of their own for some actions.
    """
    front, carried = env.grid.get(*env.front_pos), env.carrying
    enters = front is None or front.can_overlap()
    takes = front is not None and front.can_pickup() and carried is None
    drops = front is None and carried is not None
    toggles = front is not None and front.type in ("door", "box")
    if toggles and front.type == "door" and front.is_locked:
        toggles = carried is not None and carried.type == "key" and carried.color == front.color
    return [True, True, enters, takes, drops, toggles, False]


def _thing(cell: Any) -> str | None:
    """What a cell of the view holds, with its article; None for a wall, a free cell and one that is not seen."""
    kind, colour, state = (int(number) for number in cell)
    name = IDX_TO_OBJECT[kind]
    if name in (*FREE, "unseen", "wall", "agent"):
        return None
    if name == "lava":
        return "lava"
    words = f"{STATES[state]} {IDX_TO_COLOR[colour]} door" if name == "door" else f"{IDX_TO_COLOR[colour]} {name}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _place(ahead: int, right: int) -> str:
    parts = [f"{ahead} ahead"] if ahead else []
    if right:
        parts.append(f"{abs(right)} {'right' if right > 0 else 'left'}")
    return ", ".join(parts)


def _way(image: Any, column: int, row: int, across: int, down: int) -> str:
    """How many free cells there are in one direction, and what comes then."""
    free = 0
    while True:
        column, row = column + across, row + down
        inside = 0 <= column < image.shape[0] and 0 <= row < image.shape[1]
        name = IDX_TO_OBJECT[int(image[column, row, 0])] if inside else "unseen"
        if name not in FREE:
            break
        free += 1
    cells = f"{free} free cell{'' if free == 1 else 's'}"
    if name == "unseen":
        return f"{cells} or more" if free else "not seen"
    then = "a wall" if name == "wall" else _thing(image[column, row])
    return f"{cells}, then {then}" if free else f"{then}"
