"""Prompts from a template file: word for word, in every situation, and mistakes are found at the start."""

from pathlib import Path
from typing import Any

import pytest

from opdlight.envs.alfworld.env import ALFWorldEnv
from opdlight.envs.math_dataset import MathDatasetEnv
from opdlight.envs.templates import PromptTemplate
from opdlight.errors import ConfigError, EnvError

# each sentence is where a trained teacher may have it: before, between, after, and only in the first turn
HOUSE = """
Task: {{ task }}
{% if history %}
Done {{ history | length }}, shown {{ history[-1:] | length }}:
{%- for step in history[-1:] %} ({{ step.number }}: {{ step.observation }} > {{ step.action }}){% endfor %}

{% else %}
It begins.
{% endif %}
Now: {{ observation }}
['{{ admissible_actions | reject("equalto", "help") | join("'\\n '") }}']

"""


def test_a_household_prompt_is_the_file_word_for_word(tmp_path: Path) -> None:
    (tmp_path / "house.jinja").write_text(HOUSE)
    env = ALFWorldEnv(prompt="paper", prompt_template=str(tmp_path / "house.jinja"), receptacles=(3, 5), objects=(2, 4))
    assert (env.fresh_prompt, env.system_prompt) == (True, None)
    first, info = env.reset(seed=0)
    task = env._play.game.goal
    start = env._play.introduction.removeprefix("-= Welcome to TextWorld, ALFRED! =-\n\n")

    def choices(info: dict[str, Any]) -> str:
        return "\n ".join(f"'{command}'" for command in info["admissible_commands"] if command != "help")

    assert first == f"\nTask: {task}\nIt begins.\nNow: {start}\n[{choices(info)}]\n"
    second, *_, info = env.step("<action>inventory</action>")
    seen = "You are not carrying anything."
    assert second == f"\nTask: {task}\nDone 1, shown 1: (1: {start} > inventory)\nNow: {seen}\n[{choices(info)}]\n"
    third, *_, info = env.step("I do not know")
    assert f"Done 2, shown 1: (2: {seen} > )\nNow: Nothing happens.\n" in third  # no action in the second answer


def test_a_question_has_words_before_and_behind(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1 < {{ 3 }}?", "answer": 2}\n')
    (tmp_path / "a.jinja").write_text("Solve: {{ question }}\n\n{{ instruction }} Go!\n")
    held_out = {"path": str(tmp_path / "rows.jsonl")}
    env = MathDatasetEnv(held_out=held_out, prompt_template=str(tmp_path / "a.jinja"), instruction="Box it.")
    assert env.reset(seed=0)[0] == "Solve: 1 + 1 < {{ 3 }}?\n\nBox it. Go!"  # what is filled in is no template
    assert MathDatasetEnv(held_out=held_out, instruction="Box it.").reset(seed=0)[0] == "1 + 1 < {{ 3 }}?\nBox it."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ observaton }}", r"`prompt_template` .*did you mean 'observation'\?\), but got 'observaton'"),
        ("{{ observation }}{{ zzz }}", r"there are: admissible_actions, history, observation, task\), but got 'zzz'"),
        ("{{ task }}", "uses the slot 'observation'"),
        ("a\n{% if task %}{{ observation }", r"a Jinja template \(line 2: "),
        ("{{ observation }}{% for s in history %}{{ s.nmber }}{% endfor %}", "filled .*no attribute 'nmber'"),
        ("{{ observation.mro() }}", "cannot be filled"),
    ],
)
def test_a_mistake_in_a_template_is_named_at_the_start(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.jinja").write_text(text)
    with pytest.raises(ConfigError, match=message):
        ALFWorldEnv(prompt="paper", prompt_template=str(tmp_path / "wrong.jinja"))


def test_a_template_that_cannot_be_read_or_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`prompt_template` to be a text file that can be read \(No such file"):
        ALFWorldEnv(prompt="paper", prompt_template=str(tmp_path / "none.jinja"))
    (tmp_path / "latin.jinja").write_bytes("{{ question }} für".encode("latin-1"))
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        PromptTemplate.read(tmp_path / "latin.jinja", [{"question": ""}])
    with pytest.raises(ConfigError, match="`prompt` to be 'paper' beside `prompt_template`, but got 'conversation'"):
        ALFWorldEnv(prompt_template="any.jinja")


def test_a_value_that_the_examples_did_not_foresee_ends_the_episode_only() -> None:
    template = PromptTemplate("{{ 10 // (items | length) }}", [{"items": [1]}])
    with pytest.raises(EnvError, match="`prompt_template` cannot be filled"):
        template.render(items=[])
