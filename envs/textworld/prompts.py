"""What the language model reads around a game's own text."""

from opdlight.envs.templates import PromptTemplate, Step

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
PAPER = PromptTemplate(
    r"""
You are an expert player of text adventures, in the TextWorld environment. Your task is: {{ task }}
{% if history %}
You have taken {{ history | length }} steps so far. The last {{ history[-2:] | length }} were:
{% for step in history[-2:] %}
[Observation {{ step.number }}: '{{ step.observation }}', Action {{ step.number }}: '{{ step.action }}']
{% endfor %}
{% endif %}
You are now at step {{ history | length + 1 }}. Your current observation is: {{ observation }}
Your admissible actions are:
['{{ admissible_actions | join("',\n'") }}']

First reason step by step about the situation, within <think> </think> tags. Then choose one admissible action and write it within <action> </action> tags.
""".removeprefix("\n"),  # noqa: E501
    ({**LATER, "history": []}, LATER),
    required=["observation"],
)
