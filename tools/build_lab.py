"""Rebuild the bundled lab models from nothing: `python tools/build_lab.py --help`.

Recipe: one BPE tokenizer over both tasks' texts; each teacher trained from scratch on expert demonstrations of its
task; the student starts from the maths teacher and is spoilt on sloppy demonstrations of both tasks (sums that drop the
carry, ALFWorld games in which most actions are random), so that it is weak but alive.
"""

import argparse
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from rich.progress import track
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from opdlight.config import instantiate
from opdlight.data import TaskMixture
from opdlight.demonstrations import (
    Demonstration,
    Step,
    collect_demonstrations,
    read_demonstrations,
    write_demonstrations,
)

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "opdlight" / "assets" / "lab"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def tasks() -> TaskMixture:
    """The tasks of the main job, as configured."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return instantiate(compose("train", ["task=agent_math"]).task)


def drop_carries(reply: str, rng: random.Random, share: float) -> str:
    """The worked sum with `share` of its additions and subtractions done digit by digit, without carry or borrow.

    The mistake is carried through the later steps, as a pupil would.
    """
    think, sep, _ = reply.removeprefix("<think>").partition("</think>")
    value: int | None = None
    lines = []
    for line in think.split("; "):
        first, sign, second, *_ = line.split()
        a, b = int(first) if value is None else value, int(second)
        value = a + b if sign == "+" else a - b
        if rng.random() < share:
            width = max(len(str(abs(a))), len(str(b)))
            columns = zip(str(abs(a)).zfill(width), str(b).zfill(width), strict=True)
            digits = [(int(x) + int(y)) % 10 if sign == "+" else abs(int(x) - int(y)) for x, y in columns]
            value = int("".join(map(str, digits)))
        lines.append(f"{a} {sign} {b} = {value}")
    return f"<think>{'; '.join(lines)}{sep}\\boxed{{{value}}}"


def sloppy_sums(demonstrations: list[Demonstration], share: float, seed: int) -> Iterator[Demonstration]:
    """The same questions with sloppy answers."""
    rng = random.Random(seed)
    for d in demonstrations:
        steps = [Step(observation=s.observation, reply=drop_carries(s.reply, rng, share)) for s in d.steps]
        yield Demonstration(task=d.task, seed=d.seed, steps=steps, system_prompt=d.system_prompt)


def build_tokenizer(files: list[Path], folder: Path, size: int) -> PreTrainedTokenizerFast:
    """BPE over the demonstrations; each digit is a token, a word carries the blank after it."""
    texts = [
        s for f in files for d in read_demonstrations(f) for step in d.steps for s in (step.observation, step.reply)
    ]
    texts += [d.system_prompt for f in files for d in read_demonstrations(f)[:1] if d.system_prompt]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[A-Za-z]+ ?|[^\sA-Za-z\d]+ ?|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def blank_model(tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int) -> None:
    """A randomly initialised Llama of about a million parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def demonstrations(work: Path, args: argparse.Namespace) -> None:
    """Play the experts, clean and sloppy."""
    mixture = tasks()
    jobs = {
        "sums.jsonl": ("sums", args.sums, 0.0, False),
        "alfworld.jsonl": ("alfworld", args.games, 0.25, False),
        "sloppy-alfworld.jsonl": ("alfworld", args.games, args.sloppy_actions, True),
    }
    for name, (task, episodes, detours, learn) in jobs.items():
        if (work / name).exists() or (args.only and name not in args.only):
            continue
        found = collect_demonstrations(
            {task: mixture.tasks[task]},
            episodes=episodes,
            seed=args.seed + len(name),
            detours=detours,
            learn_detours=learn,
            workers=args.workers,
        )
        write_demonstrations(work / name, track(found, name, total=episodes))
    sums = read_demonstrations(work / "sums.jsonl")
    write_demonstrations(work / "sloppy-sums.jsonl", sloppy_sums(sums, args.sloppy_sums, args.seed))


def train(
    start: Path, file: Path, out: Path, *, updates: int, batch: int, rate: float, seed: int, micro_batch: int = 2048
) -> None:
    """One run of opdlight.sft."""
    arguments = [
        f"model.student.model={start}",
        f"demonstrations.file={file}",
        f"trainer.max_steps={updates}",
        f"batch_size={batch}",
        f"model.learning_rate={rate}",
        f"seed={seed}",
        f"model.micro_batch_tokens={micro_batch}",
        f"hydra.run.dir={out}",
    ]
    subprocess.run([sys.executable, "-m", "opdlight.sft", *arguments], cwd=ROOT, check=True)


def bundle(work: Path) -> None:
    """Copy the finished models into the package in bfloat16, with their tokenizers."""
    for name in ("teacher-sums", "teacher-alfworld", "student"):
        source = work / name / "student"
        model = LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        model.save_pretrained(ASSETS / name)
        PreTrainedTokenizerFast.from_pretrained(source).save_pretrained(ASSETS / name)


def main() -> None:
    """Run the stages that are asked for."""
    stages = ["demonstrations", "tokenizer", "teacher-sums", "teacher-alfworld", "student", "bundle"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=stages, help=f"which stages to run, of {', '.join(stages)}")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "lab", help="where intermediate results stay")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes that play demonstrations")
    parser.add_argument("--sums", type=int, default=40_000, help="sums to demonstrate")
    parser.add_argument("--games", type=int, default=3_000, help="ALFWorld games to demonstrate")
    parser.add_argument("--sloppy-sums", type=float, default=0.6, help="share of the student's steps without carry")
    parser.add_argument("--sloppy-actions", type=float, default=0.65, help="share of the student's actions at random")
    parser.add_argument("--updates-sums", type=int, default=1_800)
    parser.add_argument("--updates-alfworld", type=int, default=900)
    parser.add_argument("--updates-student", type=int, default=400)
    parser.add_argument("--only", nargs="*", help="demonstration files to make, all by default")
    args = parser.parse_args()
    work: Path = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    for stage in args.stages:
        if stage == "demonstrations":
            demonstrations(work, args)
        elif stage == "tokenizer":
            tokenizer = build_tokenizer([work / "sums.jsonl", work / "alfworld.jsonl"], work / "tokenizer", 768)
            blank_model(tokenizer, work / "blank", args.seed)
        elif stage == "teacher-sums":
            out = work / stage
            train(work / "blank", work / "sums.jsonl", out, updates=args.updates_sums, batch=64, rate=2e-3, seed=1)
        elif stage == "teacher-alfworld":
            out = work / stage
            train(
                work / "blank", work / "alfworld.jsonl", out, updates=args.updates_alfworld, batch=16, rate=2e-3, seed=2
            )
        elif stage == "student":
            both = read_demonstrations(work / "sloppy-alfworld.jsonl")
            both += read_demonstrations(work / "sloppy-sums.jsonl")[: len(both) // 4]
            write_demonstrations(work / "sloppy.jsonl", both)
            start = work / "teacher-sums" / "student"
            train(start, work / "sloppy.jsonl", work / stage, updates=args.updates_student, batch=16, rate=2e-3, seed=3)
        elif stage == "bundle":
            bundle(work)
        else:
            parser.error(f"Expected argument `stages` to be among {stages}, but got {stage!r}.")


if __name__ == "__main__":
    main()
