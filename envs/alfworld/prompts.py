"""What the language model reads and how its answer is understood."""

from opdlight.envs.templates import Step, game_template

CONVERSATION = (
    "Solve the task in this room. Answer with one action: go to X, open X, close X, take O from X, move O to X, use O, "
    "clean O with X, heat O with X, cool O with X, examine O, inventory or look."
)
BANNER = "-= Welcome to TextWorld, ALFRED! =-\n\n"
LATER = {  # the slots of a template, in the third turn
    "task": "examine the mug with the desklamp",
    "history": [Step(1, "You see a desk 1.", "go to desk 1"), Step(2, "On the desk 1, you see a mug 1.", "look")],
    "observation": "Nothing happens.",
    "admissible_actions": ["look", "take mug 1 from desk 1"],
}
# one turn as a complete prompt: the task, the last two steps, what is seen, what can be done
PAPER = game_template("You are an expert agent in the ALFRED embodied environment. Your task is to: {{ task }}.", LATER)
