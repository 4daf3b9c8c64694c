"""TRL's side of `tools/bench_peers.py`: its DistillationTrainer on the models and prompts of opdlight's config."""

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from opdlight.config import TrainConfig, compose, instantiate
from opdlight.data.requests import OnPolicyDataset
from opdlight.envs.answers import reset
from opdlight.models.loading import load_model, load_tokenizer, resolve_model
from tools.peers.work import Pace, arguments

LOADED_STEPS = 50  # whose prompts are made before the first step


class CountingTrainer(DistillationTrainer):
    """Counts what the loss is computed on."""

    def __init__(self, **arguments: Any) -> None:
        self.prompts: list[list[int]] = []
        self.trained = 0
        super().__init__(**arguments)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's; a step of several micro-batches calls it for each."""
        rows = zip(inputs["prompt_ids"], inputs["prompt_mask"].bool(), strict=True)
        self.prompts += [ids[mask].tolist() for ids, mask in rows]
        self.trained += int(inputs["completion_mask"].sum())
        return super().compute_loss(model, inputs, *args, **kwargs)


class KeepPace(TrainerCallback):
    """Waits between steps."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.trainer: CountingTrainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Models and engine are there."""
        self.pace.ready()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """The weights are updated; with vLLM they are sent at the beginning of the next step."""
        prompts, trained = self.trainer.prompts, self.trainer.trained
        self.trainer.prompts, self.trainer.trained = [], 0
        self.pace.stepped(prompts, trained, trained)


def conversations(cfg: Any) -> list[list[dict[str, str]]]:
    """The messages before each answer, in the order in which opdlight asks for them."""
    mixture = instantiate(cfg.task)
    sizes = {"groups": cfg.rollout.groups, "group_size": cfg.rollout.group_size}
    asked = OnPolicyDataset(mixture, updates=LOADED_STEPS, seed=cfg.seed, **sizes)
    found = []
    for step in range(LOADED_STEPS):
        for request in asked[step]:
            answer = reset(mixture.tasks[request.task].make_env(), request.seed)
            system = [] if answer.system_prompt is None else [{"role": "system", "content": answer.system_prompt}]
            found.append([*system, {"role": "user", "content": answer.observation}])
    return found


def config(cfg: Any, generation: str, folder: Path) -> DistillationConfig:
    """TRL's config of the work of opdlight's config `cfg`."""
    (task,) = cfg.task.tasks.values()
    return DistillationConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=cfg.rollout.groups * cfg.rollout.group_size,
        max_steps=LOADED_STEPS,
        max_completion_length=task.turn_tokens,
        learning_rate=cfg.optimizer.lr,
        adam_beta1=cfg.optimizer.betas[0],
        adam_beta2=cfg.optimizer.betas[1],
        weight_decay=cfg.optimizer.weight_decay,
        max_grad_norm=cfg.max_grad_norm,
        lr_scheduler_type="constant",
        temperature=cfg.sampling.temperature,
        top_p=cfg.sampling.top_p,
        seed=cfg.seed,
        shuffle_dataset=False,
        gradient_checkpointing=False,  # on by default, which is slower
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_vllm=generation == "vllm",
        vllm_max_model_length=cfg.model.max_model_len,
    )


def main() -> None:
    """`python -m tools.peers.trl_side transformers|vllm FOLDER OVERRIDE…`."""
    generation, folder = sys.argv[1], Path(sys.argv[2])
    cfg = compose("train", TrainConfig, [*arguments(sys.argv[3:], "topk_rkl"), f"run_dir={folder}"])
    student = folder / "student"  # in float32: TRL's vLLM takes the dtype from the folder
    load_model(cfg.model.student.model, "float32").save_pretrained(student)
    load_tokenizer(resolve_model(cfg.model.student.model)).save_pretrained(student)
    (task,) = cfg.task.tasks.values()
    pace = KeepPace()
    pace.trainer = CountingTrainer(
        model=str(student),
        teacher_model=load_model(task.teacher, "float32"),
        args=config(cfg, generation, folder),
        train_dataset=Dataset.from_dict({"prompt": conversations(cfg)}),
        callbacks=[pace],
    )
    pace.trainer.train()


if __name__ == "__main__":
    main()
