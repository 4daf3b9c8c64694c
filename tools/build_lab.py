"""Rebuild the bundled lab models from nothing: `python tools/build_lab.py --help`.

Recipe: one BPE tokenizer over both tasks' texts. The maths teacher is trained from scratch on worked sums. The ALFWorld
teacher is trained from scratch as a language model of whole games (what a room answers teaches it to copy names), then
on the expert's replies alone. The student starts from the maths teacher, becomes a language model of whole transcripts
of both tasks, learns the experts' replies, and finally imitates bad ones: games in which three fifths of the actions
are random, and sums that drop the carry. So it solves some episodes, and knows more than it shows.
A weaker and a stronger maths teacher are for studies of the gap to the student.
"""

import argparse
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_dir
from rich.progress import track
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from opdlight.config import instantiate
from opdlight.data.tasks import TaskMixture
from opdlight.errors import OpdError
from opdlight.sft.demonstrations import (
    Demonstration,
    Step,
    collect_demonstrations,
    read_demonstrations,
    write_demonstrations,
)
from opdlight.system.arguments import argument_parser

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "opdlight" / "assets" / "lab"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]

DEMONSTRATIONS = (  # file, task, episodes, seed, share of random actions
    ("sums.jsonl", "sums", 40_000, 11, 0.0),
    ("games.jsonl", "alfworld", 16_000, 202, 0.25),
    ("more-games.jsonl", "alfworld", 12_000, 201, 0.25),
    ("clumsy-games.jsonl", "alfworld", 12_000, 203, 0.4),
    ("last-games.jsonl", "alfworld", 5_500, 204, 0.4),
    ("wild-games.jsonl", "alfworld", 4_000, 205, 0.6),
)


class Pass(NamedTuple):
    """One run of opdlight.sft."""

    file: str
    updates: int
    batch: int
    rate: float
    seed: int


STARTS = {
    "teacher-sums": "blank",
    "teacher-sums-weaker": "blank",
    "teacher-sums-stronger": "teacher-sums-2/student",
    "teacher-alfworld": "blank",
    "student": "teacher-sums-2/student",
}
PASSES = {  # each starts from the one before
    "teacher-sums": (Pass("sums.jsonl", 1_800, 64, 2e-3, 1), Pass("sums.jsonl", 700, 64, 1.5e-3, 11)),
    "teacher-sums-weaker": (Pass("sums.jsonl", 600, 64, 2e-3, 1),),
    "teacher-sums-stronger": (Pass("sums.jsonl", 800, 64, 1e-3, 21),),
    "teacher-alfworld": (
        Pass("documents.jsonl", 700, 16, 3e-3, 42),
        Pass("games.jsonl", 900, 16, 2e-3, 43),
        Pass("more-games.jsonl", 500, 16, 1.5e-3, 46),
    ),
    "student": (
        Pass("mediocre-documents.jsonl", 750, 32, 2.5e-3, 47),
        Pass("clumsy-documents.jsonl", 450, 32, 2e-3, 48),
        Pass("both.jsonl", 600, 32, 2e-3, 62),
        Pass("more-of-both.jsonl", 500, 32, 2e-3, 67),
        Pass("most-games.jsonl", 400, 32, 2e-3, 71),
        Pass("bad-replies.jsonl", 150, 48, 1e-3, 74),
    ),
}


def tasks(name: str) -> TaskMixture:
    """The tasks of `conf/task/<name>.yaml`."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return instantiate(compose("train", [f"task={name}"]).task)


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


def documents(demonstrations: list[Demonstration]) -> list[Demonstration]:
    """The same episodes, to be learnt as whole transcripts."""
    return [replace(d, whole=True) for d in demonstrations]


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


def demonstrations(work: Path, scale: float, workers: int) -> None:
    """Play the experts, with some of ALFWorld's actions at random."""
    mixture = tasks("agent_math")
    for name, task, episodes, seed, detours in DEMONSTRATIONS:
        if (work / name).exists():
            continue
        episodes = round(episodes * scale)
        found = collect_demonstrations(
            {task: mixture.tasks[task]}, episodes=episodes, seed=seed, detours=detours, workers=workers
        )
        write_demonstrations(work / name, track(found, name, total=episodes))


def mixtures(work: Path, scale: float) -> None:
    """What the passes learn from, beside the experts' games and sums as they are."""
    sums, games, more, clumsy, last, wild = (read_demonstrations(work / name) for name, *_ in DEMONSTRATIONS)
    sloppy = list(sloppy_sums(sums, share=0.6, seed=1))

    def first(found: list[Demonstration], count: int, after: int = 0) -> list[Demonstration]:
        return found[round(after * scale) : round((after + count) * scale)]

    for name, chosen in (  # whole transcripts
        ("documents.jsonl", games),
        ("mediocre-documents.jsonl", first(games, 14_000) + first(sloppy, 5_000)),
        ("clumsy-documents.jsonl", clumsy + first(sloppy, 4_000, after=5_000)),
    ):
        write_demonstrations(work / name, documents(chosen))
    write_demonstrations(work / "both.jsonl", first(sums, 12_000) + first(games, 12_000, after=4_000))
    write_demonstrations(work / "more-of-both.jsonl", first(sums, 9_000, after=12_000) + first(more, 9_000))
    rest = first(games, 4_000) + first(more, 3_000, after=9_000) + last
    write_demonstrations(work / "most-games.jsonl", first(sums, 4_200, after=21_000) + rest)
    bad = [replace(d, steps=[replace(s, learn=True) for s in d.steps]) for d in wild]  # random actions are learnt too
    write_demonstrations(work / "bad-replies.jsonl", bad + list(sloppy_sums(first(sums, 8_000), share=0.8, seed=7)))


def train(name: str, start: Path, passes: Sequence[Pass], work: Path, scale: float) -> None:
    """The passes of one model, each a run of opdlight.sft that starts from the pass before."""
    for number, (file, updates, batch, rate, seed) in enumerate(passes, 1):
        out = work / f"{name}-{number}"
        arguments = [
            f"model.student.model={start}",
            f"demonstrations.file={work / file}",
            f"trainer.max_steps={max(round(updates * scale), 1)}",
            f"batch_size={batch}",
            f"model.learning_rate={rate}",
            f"seed={seed}",
            "model.micro_batch_tokens=2048",
            f"hydra.run.dir={out}",
        ]
        if subprocess.run([sys.executable, "-m", "opdlight.sft", *arguments], cwd=ROOT, check=False).returncode:
            raise SystemExit(f"error: pass {number} of {name} has failed (see above)")
        start = out / "student"


def target(args: argparse.Namespace) -> Path:
    """Where finished models go: a trial must not replace good ones."""
    return ASSETS if args.scale == 1 else args.work / "bundle"


def bundle(finished: dict[str, Path], target: Path) -> None:
    """Write models in bfloat16, with their tokenizers."""
    for name, source in finished.items():
        LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(target / name)
        PreTrainedTokenizerFast.from_pretrained(source).save_pretrained(target / name)
        for file in (target / name).iterdir():
            file.chmod(0o644)


def parsed(parser: argparse.ArgumentParser, stages: list[str], folder: str) -> argparse.Namespace:
    """The arguments of a recipe, checked."""
    parser.add_argument("stages", nargs="*", default=stages, help=f"which stages to run, of {', '.join(stages)}")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / folder, help="where intermediate results stay")
    parser.add_argument("--workers", type=int, default=2, help="processes that play demonstrations")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on demonstrations and updates; 0.01 to try out"
    )
    args = parser.parse_args()
    for stage in args.stages:
        if stage not in stages:
            parser.error(f"expected stages among {', '.join(stages)}, but got {stage!r}")
    if not (args.scale > 0 and args.workers > 0):
        parser.error("expected --scale and --workers to be above 0")
    args.work = args.work.absolute()
    return args


def run(args: argparse.Namespace, run_stage: Callable[[str, argparse.Namespace], None]) -> None:
    """The stages, in the order given."""
    args.work.mkdir(parents=True, exist_ok=True)
    try:
        for stage in args.stages:
            run_stage(stage, args)
    except OpdError as error:
        raise SystemExit(f"error: {error} (the stages before make what a stage needs)") from error


def main() -> None:
    """Run the stages named on the command line."""
    stages = ["demonstrations", "tokenizer", *PASSES, "bundle"]
    run(parsed(argument_parser(__doc__), stages, "lab"), run_stage)


def run_stage(stage: str, args: argparse.Namespace) -> None:
    """One stage of the recipe."""
    work: Path = args.work
    if stage == "demonstrations":
        demonstrations(work, args.scale, args.workers)
    elif stage == "tokenizer":
        tokenizer = build_tokenizer([work / "sums.jsonl", work / "games.jsonl"], work / "tokenizer", 768)
        blank_model(tokenizer, work / "blank", seed=1)
        mixtures(work, args.scale)
    elif stage in PASSES:
        train(stage, work / STARTS[stage], PASSES[stage], work, args.scale)
    else:
        finished = {name: work / f"{name}-{len(passes)}" / "student" for name, passes in PASSES.items()}
        bundle(finished, target(args))


if __name__ == "__main__":
    main()
