"""Demonstrations: detours, tokens, files."""

from pathlib import Path
from typing import Any

import gymnasium
import pytest

from opdlight.batch.collate import Collate
from opdlight.data.tasks import Task
from opdlight.envs.base import TextEnv
from opdlight.errors import ConfigError
from opdlight.rollout import ChatRenderer
from opdlight.sft.demonstrations import (
    Demonstration,
    Step,
    collect_demonstrations,
    demonstrate,
    read_demonstrations,
    tokens,
    write_demonstrations,
)
from opdlight.types import SharedVocabulary
from tests.tiny_models import tiny_tokenizer


class Corridor(TextEnv):
    """Three steps right lead out; left leads back."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.turn = 0, 0
        return "start", {"admissible_commands": ["left", "right"]}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.at, self.turn = self.at + (1 if action == "right" else -1), self.turn + 1
        out, late = self.at == 3, self.turn == 12
        info = {"admissible_commands": ["left", "right"], "success": out, "metrics": {}}
        return f"at {self.at}", float(out), out, late and not out, info

    def expert_action(self) -> str:
        return "right"


gymnasium.register(id="test/Corridor-v0", entry_point=Corridor, disable_env_checker=True, order_enforce=False)
TASK = Task(env={"id": "test/Corridor-v0"}, teacher="")


def test_the_expert_recovers_from_detours_that_are_not_learnt() -> None:
    played = [demonstrate("c", TASK, seed, detours=0.3) for seed in range(40)]
    steps = [s for d in played for s in d.steps]
    assert any(not s.learn for s in steps)
    assert {s.reply for s in steps if s.learn} == {"right"}
    assert played == [demonstrate("c", TASK, seed, detours=0.3) for seed in range(40)]


@pytest.mark.parametrize(
    "env",
    [
        {"id": "opdlight/WebShop-v0", "products": 50},
        {"id": "opdlight/ALFWorld-v0", "source": "generated", "receptacles": [3, 5], "objects": [2, 4]},
    ],
    ids=["webshop", "alfworld"],
)
@pytest.mark.parametrize("prompt", ["paper", "conversation"])
def test_detours_are_in_the_form_that_the_prompt_asks_for(env: dict[str, Any], prompt: str) -> None:
    played = demonstrate("t", Task(env={**env, "prompt": prompt, "max_turns": 8}, teacher=""), 3, detours=0.5)
    assert {step.learn for step in played.steps} == {False, True}
    for step in played.steps:
        assert (step.reply.startswith("<action>") and step.reply.endswith("</action>")) is (prompt == "paper")


def test_collected_demonstrations_are_successful_and_complete(tmp_path: Path) -> None:
    task = Task(env={"id": "opdlight/ToyText-v0", "game": "FrozenLake-v1"}, teacher="")
    found = list(collect_demonstrations({"lake": task}, episodes=5, seed=0, detours=0.0))
    assert len(found) == 5
    assert all(d.success and d.task == "lake" for d in found)
    write_demonstrations(tmp_path / "d.jsonl", found)
    assert read_demonstrations(tmp_path / "d.jsonl") == found
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]


def test_demonstrations_of_a_file_show_each_training_row_once_and_no_held_out_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"question": "{n}?", "answer": {n}}}\n' for n in range(40)))
    env = {"id": "opdlight/MathDataset-v0", "path": str(path), "instruction": ""}
    task, other = Task(env=env, teacher="t"), Task(env=env, weight=0)  # what is only evaluated is not demonstrated
    made: Any = task.make_env()
    found = list(collect_demonstrations({"m": task, "o": other}, episodes=len(made.training), seed=0, detours=0.0))
    assert sorted(d.steps[0].observation for d in found) == sorted(row.question for row in made.training)
    assert [d.seed for d in found] != sorted(d.seed for d in found)
    with pytest.raises(ConfigError, match=r"`task\.tasks`.*positive weight"):
        list(collect_demonstrations({"o": other}, episodes=1, seed=0, detours=0.0))


def test_tokens_train_on_the_replies_that_are_worth_it_and_see_the_rest() -> None:
    renderer = ChatRenderer(tiny_tokenizer())
    shown = Demonstration(
        task="c",
        seed=0,
        system_prompt="be quick",
        steps=[
            Step(observation="start", reply="right"),
            Step(observation="at 1", reply="left", learn=False),
            Step(observation="at 0", reply="<think>no</think>right"),
        ],
    )
    (batch,) = Collate(tasks=("c",), shared=SharedVocabulary(10**6), micro_batch_tokens=10**6)(
        [tokens(shown, renderer)]
    )
    decode = renderer.tokenizer.decode
    assert decode(batch.target_ids) == "right<|im_end|><think>no</think>right<|im_end|>"
    everything = decode(batch.input_ids[0])
    expected = renderer.render(
        [
            {"role": "system", "content": "be quick"},
            {"role": "user", "content": "start"},
            {"role": "assistant", "content": "right"},
            {"role": "user", "content": "at 1"},
            {"role": "assistant", "content": "left"},
            {"role": "user", "content": "at 0"},
        ]
    )
    assert everything == expected + "<think>no</think>right<|im_end|>"


def test_fresh_prompts_make_a_row_a_turn() -> None:
    renderer = ChatRenderer(tiny_tokenizer())
    steps = [Step(observation="look 1", reply="go"), Step(observation="look 2", reply="go")]
    shown = Demonstration(task="c", seed=0, steps=steps, fresh_prompt=True)
    (batch,) = Collate(tasks=("c",), shared=SharedVocabulary(10**6), micro_batch_tokens=10**6)(
        [tokens(shown, renderer)]
    )
    assert batch.input_ids.shape[0] == 2


def test_bad_files_and_shares_name_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"demonstrations\.file"):
        read_demonstrations(tmp_path / "missing.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"task": "c"}\n')
    with pytest.raises(ConfigError, match="line 1"):
        read_demonstrations(tmp_path / "bad.jsonl")
