"""Rebuild the lab models that also know WebShop, from the other lab models: `python tools/build_lab_shop.py --help`.

Recipe: the tokenizer of the lab gets merges of the shop's texts behind its own, so that sums and games keep their ids;
every model gets rows for the new ids. The shop's teacher starts from the ALFWorld teacher, which can copy names,
becomes a language model of whole visits to many generated shops, then learns the expert's replies. The student starts
from the lab student and learns whole transcripts of the three tasks, the experts' replies, and finally bad ones. The
teachers of sums and ALFWorld are only widened.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from rich.progress import track
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from opdlight.data.tasks import Task
from opdlight.sft.demonstrations import (
    Demonstration,
    collect_demonstrations,
    read_demonstrations,
    write_demonstrations,
)
from opdlight.system.arguments import argument_parser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.build_lab import ASSETS, Pass, bundle, documents, parsed, run, sloppy_sums, target, tasks, train

SIZE = 1536  # of the vocabulary
UNUSED = "Ā"  # the byte 0, as byte-level BPE writes it
LONGEST = 3_400  # characters of a visit that is learnt from
SHOPS = 40  # catalogues that the demonstrations come from; the task's own is number 0
DEMONSTRATIONS = (  # file, task, episodes, seed, share of random actions
    ("sums.jsonl", "sums", 12_000, 311, 0.0),
    ("games.jsonl", "alfworld", 5_000, 312, 0.25),
    ("wild-games.jsonl", "alfworld", 1_500, 313, 0.6),
    ("visits.jsonl", "webshop", 12_000, 314, 0.15),
    ("clumsy-visits.jsonl", "webshop", 3_000, 315, 0.4),
    ("wild-visits.jsonl", "webshop", 2_000, 316, 0.6),
)


STARTS = {"shop-teacher-webshop": "wide-teacher-alfworld", "shop-student": "wide-student"}
PASSES = {  # each starts from the one before
    "shop-teacher-webshop": (
        Pass("visit-documents.jsonl", 500, 12, 2.5e-3, 81),
        Pass("short-visits.jsonl", 2_000, 12, 2e-3, 82),
    ),
    "shop-student": (
        Pass("all-documents.jsonl", 400, 16, 2.5e-3, 83),
        Pass("all-replies.jsonl", 1_500, 24, 2e-3, 84),
        Pass("bad-replies.jsonl", 130, 32, 1e-3, 96),
    ),
}


def shops(task: Task, scale: float) -> dict[str, Task]:
    """The same task in many shops."""
    seeds = range(max(round(SHOPS * min(scale, 1)), 1))
    return {f"webshop {seed}": replace(task, env={**task.env, "catalogue_seed": seed}) for seed in seeds}


def demonstrations(work: Path, scale: float, workers: int) -> None:
    """Play the experts, with some random actions."""
    mixture = tasks("agent_math_shop")
    for name, task, episodes, seed, detours in DEMONSTRATIONS:
        if (work / name).exists():
            continue
        places = {task: mixture.tasks[task]} if task != "webshop" else shops(mixture.tasks[task], scale)
        count = max(round(episodes * scale), len(places))
        played = collect_demonstrations(places, episodes=count, seed=seed, detours=detours, workers=workers)
        write_demonstrations(work / name, (replace(d, task=task) for d in track(played, name, total=count)))


def extended(
    base: PreTrainedTokenizerFast, kept: Iterable[str], texts: Iterable[str], size: int
) -> PreTrainedTokenizerFast:
    """The tokenizer with more merges behind its own, learnt on `texts`, that leave the ids of `kept` as they are."""
    core = base.backend_tokenizer
    frozen = set[tuple[str, str]]()
    for parts in _words(core, kept)[0].values():
        frozen |= set(pairwise(parts))
    words, counts = _words(core, texts)
    saved = json.loads(core.to_str())
    vocabulary, merges = saved["model"]["vocab"], saved["model"]["merges"]
    vocabulary |= {token["content"]: token["id"] for token in saved["added_tokens"]}
    while len(vocabulary) < size:
        pairs = Counter[tuple[str, str]]()
        for piece, parts in words.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[piece]
        best = max(pairs.keys() - frozen, key=lambda pair: (pairs[pair], pair))
        merges.append([*best])
        vocabulary.setdefault("".join(best), len(vocabulary))
        words = {piece: _merged(parts, *best) for piece, parts in words.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(saved)),
        pad_token=base.pad_token,
        eos_token=base.eos_token,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = base.chat_template
    return tokenizer


def _words(core: Tokenizer, texts: Iterable[str]) -> tuple[dict[str, list[str]], Counter[str]]:
    """The tokens of each word of the texts, and how often it stands there."""
    counts = Counter(piece for text in texts for piece, _ in core.pre_tokenizer.pre_tokenize_str(text))
    return {piece: [token.value for token in core.model.tokenize(piece)] for piece in counts}, counts


def _merged(parts: list[str], left: str, right: str) -> list[str]:
    found = list[str]()
    for part in parts:
        if found and found[-1] == left and part == right:
            found[-1] = left + right
        else:
            found.append(part)
    return found


def texts_of(files: Iterable[Path]) -> Iterator[str]:
    """Everything that is said in demonstrations."""
    for file in files:
        for shown in read_demonstrations(file):
            yield shown.system_prompt or ""
            for step in shown.steps:
                yield step.observation
                yield step.reply


def widen(source: Path, target: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The model with rows for the tokens that the tokenizer has more, and room for longer contexts.

    The new rows are near that of a byte that no text holds, which the model has learnt never to write.
    """
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    old = model.config.vocab_size
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        rows = cast(torch.nn.Embedding, model.get_input_embeddings()).weight
        noise = torch.randn(len(rows) - old, rows.shape[1], generator=torch.Generator().manual_seed(2))
        rows[old:] = rows[tokenizer.convert_tokens_to_ids(UNUSED)] + 0.01 * noise
    model.config.max_position_embeddings = 4096
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def mixtures(work: Path, scale: float) -> None:
    """What the passes learn from, beside the expert's visits as they are."""
    sums, games, wild_games, visits, clumsy, wild_visits = (
        read_demonstrations(work / name) for name, *_ in DEMONSTRATIONS
    )
    sloppy = list(sloppy_sums(sums, share=0.6, seed=1))

    def first(found: list[Demonstration], count: int) -> list[Demonstration]:
        return found[: round(count * scale)]

    random.Random(3).shuffle(visits)  # they came shop by shop
    visits, clumsy, wild_visits = (
        [d for d in some if sum(len(s.observation) + len(s.reply) for s in d.steps) < LONGEST]
        for some in (visits, clumsy, wild_visits)
    )
    write_demonstrations(work / "short-visits.jsonl", visits)
    write_demonstrations(work / "visit-documents.jsonl", documents(visits + clumsy))
    write_demonstrations(
        work / "all-documents.jsonl",
        documents(first(visits, 5_000) + first(clumsy, 1_500) + first(games, 4_000) + first(sloppy, 3_000)),
    )
    write_demonstrations(work / "all-replies.jsonl", [*first(sums, 9_000), *games, *first(visits, 7_000)])
    bad = [
        replace(d, steps=[replace(s, learn=True) for s in d.steps]) for d in wild_games + wild_visits
    ]  # random actions are learnt, too
    write_demonstrations(work / "bad-replies.jsonl", [*bad, *sloppy_sums(first(sums, 4_000), share=0.8, seed=7)])


def run_stage(stage: str, args: argparse.Namespace) -> None:
    """One stage of the recipe."""
    work: Path = args.work
    if stage == "demonstrations":
        demonstrations(work, args.scale, args.workers)
    elif stage == "tokenizer":
        base = PreTrainedTokenizerFast.from_pretrained(ASSETS / "student")
        kept = texts_of(work / name for name, task, *_ in DEMONSTRATIONS if task != "webshop")
        tokenizer = extended(base, kept, texts_of([work / "visits.jsonl"]), SIZE)
        for name in ("student", "teacher-sums", "teacher-alfworld"):
            widen(ASSETS / name, work / f"wide-{name}", tokenizer)
        mixtures(work, args.scale)
    elif stage in PASSES:
        train(stage, work / STARTS[stage], PASSES[stage], work, args.scale)
    else:
        finished = {name: work / f"{name}-{len(passes)}" / "student" for name, passes in PASSES.items()}
        finished |= {f"shop-{name}": work / f"wide-{name}" for name in ("teacher-sums", "teacher-alfworld")}
        bundle(finished, target(args))


if __name__ == "__main__":
    run(parsed(argument_parser(__doc__), ["demonstrations", "tokenizer", *PASSES, "bundle"], "lab-shop"), run_stage)
