"""Training steps of random models of real shapes on a GPU: tokens a second, MFU, and peak memory beside the doctor's.

`python tools/bench_shapes.py` prints a Markdown table, a row for each way to run the step. Rollouts are random tokens
of random lengths, from no engine; no weight is downloaded. The models have the lab's tokenizer, so the ids of a top-K
are chosen among its few tokens, while all logits are computed.

Example: python tools/bench_shapes.py --student 0.5B --teacher 1.5B --ways padded checkpointed
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from transformers import Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from opdlight.callbacks import Throughput
from opdlight.config import TrainConfig, compose, instantiate, make_trainer
from opdlight.data.requests import OnPolicyData
from opdlight.doctor.fitting import make_plan
from opdlight.doctor.memory import GIB, estimate, totals
from opdlight.doctor.sizes import ModelSize
from opdlight.models import Teacher
from opdlight.models.loading import load_tokenizer, resolve_model
from opdlight.rollout import ScriptedEngine
from opdlight.system.arguments import argument_parser
from opdlight.system.quiet import quiet_libraries
from opdlight.train.build import build
from tools.preset_memory import SHAPES, config

WAYS = {
    "distinct tokens": [],
    "padded": ["packing=false"],
    "flex attention": ["model.attn_implementation=flex_attention"],
    "checkpointed": ["+model.student.gradient_checkpointing=true"],
    "full vocabulary": ["loss=full_rkl"],
    "offloaded": ["teacher_placement=offloaded"],
}
_run = itertools.count()


class RandomAnswers(ScriptedEngine):
    """Answers with 1/8 to all of `max_num_seqs` random tokens; takes the arguments of an engine of a config."""

    def __init__(self, model: str, max_model_len: int, max_num_seqs: int, **ignored: Any) -> None:
        width = len(load_tokenizer(resolve_model(model)))
        draw = torch.Generator().manual_seed(next(_run))  # other lengths in each run: a kernel may remember shapes

        def answer(prompt: list[int]) -> list[int]:
            length = int(torch.randint(max_num_seqs // 8, max_num_seqs + 1, (), generator=draw))
            return torch.randint(width, (length,), generator=draw).tolist()

        super().__init__(answer, max_model_len=max_model_len)


class Keep(L.Callback):
    """Keeps what was logged of each update, its seconds, and the tokens that a model ran in it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After Throughput has logged."""
        seconds = sum(s for name, s in pl_module.timer.seconds.items() if name not in ("rollout", "publish"))
        tokens = sum(len(turns[-1].prompt_ids) + len(turns[-1].completion_ids)
                     for turns in (t.turns for t in outputs["step"].trajectories))  # fmt: skip
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.steps.append(logged | {"seconds": seconds, "tokens": float(tokens)})


def write_model(shape: str, folder: Path, device: str) -> str:
    """A model of random bfloat16 weights with the lab's tokenizer; a shape that is none of ours is a model already."""
    if shape not in SHAPES:
        return shape
    torch.manual_seed(len(shape) + ord(shape[0]))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen2ForCausalLM(config(shape))
    torch.set_default_dtype(before)
    model.save_pretrained(folder / shape)
    load_tokenizer(resolve_model("lab/student")).save_pretrained(folder / shape)
    return str(folder / shape)


def measure(args: argparse.Namespace, student: str, teacher: str, more: list[str]) -> tuple[Keep, float]:
    """The updates without evaluations, checkpoints and other callbacks; and the bytes that the doctor counts."""
    with tempfile.TemporaryDirectory() as folder:
        gpu = args.device == "cuda"
        overrides = [
            "task=sums", f"trainer={'gpu' if gpu else 'cpu'}", f"trainer.max_steps={args.updates}",
            f"run_dir={folder}", f"model.student.model={student}", f"task.tasks.sums.teacher={teacher}",
            "engine._target_=tools.bench_shapes.RandomAnswers", f"engine.max_num_seqs={args.length}",
            f"model.max_model_len={args.length + 512}", f"task.tasks.sums.turn_tokens={args.length}",
            f"task.tasks.sums.trajectory_tokens={args.length + 512}", f"rollout.groups={args.groups}",
            f"micro_batch_tokens={args.micro_batch_tokens}", *more, "+trainer.limit_val_batches=0",
        ]  # fmt: skip
        cfg = compose("train", TrainConfig, overrides)
        mixture = instantiate(cfg.task)
        module = build(cfg, mixture)
        plan = make_plan(
            ModelSize.of(module.student.model),
            [ModelSize.of(t.model) for t in module.teachers.distinct if isinstance(t, Teacher)],
            needs=module.loss.needs,
            tasks=mixture.tasks.values(),
            engine={"url": ""},  # it takes nothing here
            trainer=cfg.trainer,
            optimizer=cfg.optimizer._target_,
            compute_dtype=cfg.model.compute_dtype,
            micro_batch_tokens=cfg.micro_batch_tokens,
            placement=cfg.teacher_placement,
            staleness=0,
            gpu=gpu,
            available=0.0,
        )
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        keep = Keep()
        trainer = make_trainer(cfg.trainer, callbacks=[Throughput(), keep], default_root_dir=folder, **quiet)
        data = OnPolicyData(mixture, updates=args.updates, groups=args.groups, group_size=1, seed=1)
        trainer.fit(module, datamodule=data)
        module.source.close()
        if args.parts:
            parts = ", ".join(f"{p.name} {p.training / GIB:.2f}" for p in estimate(plan) if p.training)
            times = {n: v for n, v in keep.steps[-1].items() if n.startswith("time/")}
            print(f"<!-- {parts}; {', '.join(f'{n} {v:.3f}' for n, v in times.items())} -->")
        return keep, totals(estimate(plan)).training


def main() -> None:
    parser = argument_parser(__doc__)
    shapes = f"one of {', '.join(SHAPES)}, or a model"
    parser.add_argument("--student", default="0.5B", help=shapes)
    parser.add_argument("--teacher", default="1.5B", help=shapes)
    parser.add_argument("--groups", type=int, default=64, help="trajectories of an update")
    parser.add_argument("--length", type=int, default=1024, help="of the longest completion, in tokens")
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--updates", type=int, default=5, help="the first two warm up and are left out")
    parser.add_argument("--ways", nargs="+", choices=WAYS, metavar="WAY", default=list(WAYS), help=", ".join(WAYS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--parts", action="store_true", help="also the doctor's parts, in GiB, and the last step's time"
    )
    args = parser.parse_args()
    if min(args.groups, args.micro_batch_tokens) < 1 or args.updates < 3 or args.length < 8:
        parser.error("expected --groups and --micro-batch-tokens of at least 1, --updates of 3 and --length of 8")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected --device cpu: there is no CUDA GPU here")
    quiet_libraries()
    name = torch.cuda.get_device_name() if args.device == "cuda" else "the CPU"
    print(f"{args.student} learns from {args.teacher} on {name}, torch {torch.__version__}\n")
    print("| way | s an update | tokens/s | MFU | peak GiB | doctor's GiB |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        student, teacher = (write_model(shape, Path(folder), args.device) for shape in (args.student, args.teacher))
        for way in args.ways:
            began = time.perf_counter()
            keep, counted = measure(args, student, teacher, WAYS[way])
            kept = keep.steps[2:]

            def mean(of: str, kept: list[dict[str, float]] = kept) -> float:
                return statistics.mean(step.get(of, float("nan")) for step in kept)

            seconds = mean("seconds")
            row = [way, f"{seconds:.3f}", f"{mean('tokens') / seconds:,.0f}", f"{100 * mean('throughput/mfu'):.1f} %",
                   f"{max(step.get('memory/gpu', 0.0) for step in kept):.2f}", f"{counted / GIB:.2f}"]  # fmt: skip
            print(f"| {' | '.join(row)} |", flush=True)
            print(f"{way}: {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
