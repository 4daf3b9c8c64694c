"""What the language model reads around a game's own text."""

from opdlight.envs.templates import Step, game_template

CONVERSATION = (
    "Play this text adventure. Answer with one command: look, inventory, go north (south, east, west), examine X, "
    "take X, take X from Y, drop X, put X on Y, insert X into Y, open X, close X, unlock X with K, lock X with K or "
    "eat X."
)
NOT_POSSIBLE = "That is not possible here."
NO_OBJECTIVE = "Find out what there is to do, and do it."
LATER = {  # the slots of a template, in the third turn
    "task": "Open the locker, then take the mug from it.",
    "history": [Step(1, "-= Attic =-\nYou see a locker.", "examine locker"), Step(2, "It is closed.", "open locker")],
    "observation": "You open the locker, revealing a mug.",
    "admissible_actions": ["look", "take mug from locker"],
}
# one turn as a complete prompt: the task, the last two steps, what is seen, what can be done
PAPER = game_template(
    "You are an expert player of text adventures, in the TextWorld environment. Your task is: {{ task }}", LATER
)
