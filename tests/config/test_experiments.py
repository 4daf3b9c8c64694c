"""The presets of conf/experiment: each says what the paper says, and the command line still wins."""

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from opdlight.config import CONF, DoctorConfig, TrainConfig, compose
from opdlight.errors import ConfigError

PRESETS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
PAPER = [name for name in PRESETS if name.startswith("paper_")]
# the paper's reference settings, which are the same in each of its experiments
SHARED = {
    "rollout.groups": 16,
    "rollout.group_size": 8,
    "rollout.mini_batches": 2,  # 128 trajectories in mini-batches of 64
    "sampling.temperature": 1.0,
    "sampling.top_p": 0.9,
    "evaluation.temperature": 1.0,
    "evaluation.top_p": 0.9,
    "loss._target_": "opdlight.losses.SupportMatching",
    "loss.support": "teacher_top_k",
    "loss.k": 32,
    "loss.divergence": "reverse_kl",
    "loss.outside": "renormalise",
    "mask.tokens": [],
    "model.dtype": "float32",
    "model.student.gradient_checkpointing": True,
    "optimizer._target_": "torch.optim.AdamW",
    "optimizer.lr": 2e-6,
    "schedule.kind": "constant",
    "schedule.warmup": 0,
    "trainer.devices": 8,
    "trainer.strategy._target_": "opdlight.distillation.sharded.ShardedStrategy",
    "trainer.max_steps": 800,  # 400 rollouts of two updates
    "engine._target_": "opdlight.rollout.VLLMEngine",
}
MATHS: dict[str, Any] = {
    "model.student.model": "Qwen/Qwen2.5-7B-Instruct",
    "model.max_model_len": 18432,
    "task.tasks.math.teacher": "open-thoughts/OpenThinker3-7B",
    "task.tasks.math.env.path": "BytedTsinghua-SIA/DAPO-Math-17k",
    "task.tasks.math.turn_tokens": 16384,
    "task.tasks.math.trajectory_tokens": 2048 + 16384,
}
HOUSE = {
    "task.tasks.alfworld.teacher": "langfengQ/GiGPO-Qwen2.5-7B-Instruct-ALFWorld",
    "task.tasks.alfworld.env.max_turns": 30,
    "task.tasks.alfworld.env.source": "original",
    "task.tasks.alfworld.env.prompt": "paper",
    "task.tasks.alfworld.turn_tokens": 512,
}
OWN: dict[str, dict[str, Any]] = {
    "paper_math": MATHS,
    "paper_math_mask": MATHS | {"mask.tokens": ["<think>", "<think>\n", "</think>", "<|im_end|>"]},
    "paper_math_sampled_token": MATHS
    | dict.fromkeys([key for key in SHARED if key.startswith("loss.")])
    | {"loss._target_": "opdlight.losses.SampledToken", "loss.gamma": 0.0, "loss.clip": 0.2, "loss.dual_clip": 3.0}
    | {"sampling.top_p": 1.0},
    "paper_alfworld": HOUSE | {"model.student.model": "Qwen/Qwen2.5-7B-Instruct"},
    "paper_agent_math": MATHS | HOUSE | {"task.schedule": "alternate"},
}
SHOP = {
    "model.student.model": "Qwen/Qwen2.5-1.5B-Instruct",
    "task.tasks.webshop.env.max_turns": 15,
    "task.tasks.webshop.env.source": "original",
    "task.tasks.webshop.env.prompt": "paper",
}
OWN["paper_webshop"] = SHOP
EVALUATED = {"math", "aime24", "aime25", "amc23", "minerva", "olympiadbench"}  # math: MATH-500


def plain(cfg: DictConfig, key: str) -> Any:
    found = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_says_what_the_paper_says(name: str) -> None:
    cfg = compose("train", TrainConfig, [f"experiment={name}"])
    expected = SHARED | OWN[name]
    assert {key: plain(cfg, key) for key in expected} == expected
    tasks = cfg.task.tasks
    assert {n for n, t in tasks.items() if t.weight} == {n for n in ("math", "alfworld", "webshop") if n in tasks}
    assert len({t.weight for t in tasks.values() if t.weight}) == 1  # 200 rollouts each
    if "math" in tasks:
        assert set(tasks) - {"alfworld"} == EVALUATED
        assert {tasks[n].samples for n in EVALUATED} == {32}
        assert all(tasks[n].env.held_out.path and tasks[n].episodes is None for n in EVALUATED)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_passes_the_checks_of_training_and_doctor(name: str) -> None:
    one = compose("doctor", DoctorConfig, [f"experiment={name}", "quick=false"])
    assert one.rollout == compose("train", TrainConfig, [f"experiment={name}"]).rollout
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ")
    assert f"experiment={name}" in (CONF / "experiment" / "README.md").read_text()


def test_the_command_line_wins_over_a_preset() -> None:
    mine = ["loss=topk_fkl", "sampling.top_p=1.0", "trainer=cpu", "trainer.devices=1", "task.tasks.math.samples=4"]
    for overrides in ([*mine, "experiment=paper_math"], ["experiment=paper_math", *mine]):  # in any order
        cfg = compose("train", TrainConfig, overrides)
        assert (cfg.loss.divergence, cfg.sampling.top_p, cfg.trainer.devices) == ("forward_kl", 1.0, 1)
        assert "strategy" not in cfg.trainer
        assert {t.samples for t in cfg.task.tasks.values()} == {4}  # what is set for `math` holds for all sets
        assert cfg.rollout.groups == 16
    mine = ["task.tasks.math.env.prompt_template=my.jinja", "task.tasks.math.turn_tokens=100"]
    cfg = compose("train", TrainConfig, ["experiment=paper_agent_math", *mine])
    maths = [t for n, t in cfg.task.tasks.items() if n != "alfworld"]
    assert {(t.env.prompt_template, t.turn_tokens) for t in maths} == {("my.jinja", 100)}
    other = ["task=sums", "model=lab", "engine=vllm_server", "engine.url=http://host:8000", "trainer=gpu"]
    assert list(compose("train", TrainConfig, ["experiment=paper_math", *other]).task.tasks) == ["sums"]


def test_without_one_nothing_changes_and_a_misspelt_one_is_named() -> None:
    assert compose("train", TrainConfig, []).rollout.groups == 48
    with pytest.raises(ConfigError, match=r"has no option 'paper_maths'\. Did you mean `experiment=paper_math`"):
        compose("train", TrainConfig, ["experiment=paper_maths"])
