"""Time and peak memory of a renormalised loss, forward and backward, by the way its K logits are computed.

`python tools/bench_lm_head.py` prints a Markdown table. Every measurement runs in a process of its own, since the peak
memory of a process never falls. The peak counts what the step adds to its inputs (hidden states, head, support); the
gradient of the head, which has the head's size whatever one does, is part of it and is also shown by itself. On a GPU
it counts what PyTorch has allocated there.
"""

import argparse
import resource
import time
from multiprocessing import get_context

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from opdlight.losses.divergences import reverse_kl
from opdlight.losses.outside import renormalised
from opdlight.models import support_product
from opdlight.models.lm_head import LMHead, support_logits
from opdlight.system.arguments import argument_parser

WAYS = ("union", "gather", "checkpointed", "full")
CHUNK = 256  # positions of one checkpointed chunk


def inputs(args: argparse.Namespace, v: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, supports drawn from `distinct` ids of the vocabulary, teacher log-probs."""
    torch.manual_seed(0)
    kind = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    hidden = torch.randn(args.n, args.d, **kind).requires_grad_(True)
    weight = torch.empty(v, args.d, **kind).normal_(std=0.04).requires_grad_(True)
    pool = torch.randperm(v, device=args.device)[: args.distinct]
    ids = torch.stack([pool[torch.randperm(len(pool), device=args.device)[: args.k]] for _ in range(args.n)])
    return hidden, weight, ids, torch.randn(args.n, args.k, device=args.device).log_softmax(-1)


def loss(way: str, hidden: Tensor, weight: Tensor, ids: Tensor, log_q: Tensor) -> Tensor:
    """The mean of the renormalised loss."""

    def of(logits: Tensor, log_q: Tensor) -> Tensor:
        valid = torch.ones_like(log_q, dtype=torch.bool)
        return reverse_kl(renormalised(logits, valid), renormalised(log_q, valid)).sum()

    def dense(hidden: Tensor, ids: Tensor, log_q: Tensor) -> Tensor:
        return of((hidden @ weight.T).gather(-1, ids).float(), log_q)

    if way == "full":
        return dense(hidden, ids, log_q) / len(ids)
    if way == "checkpointed":
        chunks = zip(hidden.split(CHUNK), ids.split(CHUNK), log_q.split(CHUNK), strict=True)
        return torch.stack([checkpoint(dense, *chunk, use_reentrant=False) for chunk in chunks]).sum() / len(ids)
    return of(support_logits(hidden, LMHead(weight=weight), ids), log_q) / len(ids)


def peak_mib(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(job: tuple[argparse.Namespace, int, str]) -> tuple[float, float, float]:
    """One step of one way, in this process: seconds (the best of `repeat`), MiB above the inputs, loss."""
    args, v, way = job
    torch.set_num_threads(args.threads)
    support_product.GATHER_RATIO = {"union": 10**9, "gather": 0}.get(way, support_product.GATHER_RATIO)
    hidden, weight, ids, log_q = inputs(args, v)
    before, seconds, value = peak_mib(args.device), float("inf"), 0.0
    for _ in range(args.repeat):
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        result = loss(way, hidden, weight, ids, log_q)
        result.backward()
        peak = peak_mib(args.device)  # waits for a GPU
        seconds, value = min(seconds, time.perf_counter() - start), result.item()
    return seconds, peak - before, value


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--n", type=int, default=1024, help="positions")
    parser.add_argument("--d", type=int, default=128, help="hidden size")
    parser.add_argument("--k", type=int, default=32, help="support size")
    parser.add_argument("--distinct", type=int, default=3000, help="distinct ids over all supports")
    parser.add_argument(
        "--vocabularies", type=int, nargs="+", metavar="V", default=[32_768, 131_072, 262_144], help="their sizes"
    )
    known = f"of {', '.join(WAYS)}; times are relative to the last one"
    parser.add_argument("--ways", nargs="+", choices=WAYS, metavar="WAY", default=WAYS, help=known)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of hidden states and head")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeat", type=int, default=2, help="steps of each way; the fastest counts")
    args = parser.parse_args()
    if min(args.n, args.d, args.k, args.threads, args.repeat) < 1:
        parser.error("expected --n, --d, --k, --threads and --repeat of at least 1")
    if not args.k <= args.distinct <= min(args.vocabularies):
        parser.error("expected --k to be at most --distinct, and --distinct at most the smallest vocabulary")

    where = f"{args.threads} thread(s)" if args.device == "cpu" else "one GPU"
    print(f"N = {args.n}, d = {args.d}, K = {args.k}, {args.distinct} distinct ids, {args.dtype}, {where}\n")
    print(f"| V | way | seconds | time / {args.ways[-1]} | peak MiB above inputs | of it, gradient of the head MiB |")
    print("|---|---|---|---|---|---|")
    # A forked process starts with its parent's memory, not with its parent's peak, and imports nothing again.
    with Progress(console=Console(stderr=True)) as progress, get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        task = progress.add_task("measuring", total=len(args.vocabularies) * len(args.ways))
        for v in args.vocabularies:
            results: dict[str, tuple[float, float, float]] = {}
            for way in args.ways:
                progress.update(task, description=f"V = {v:,}, {way}")
                results[way] = pool.apply(measure, ((args, v, way),))
                progress.advance(task)
            losses = [value for _, _, value in results.values()]
            if max(losses) - min(losses) > (1e-4 if args.dtype == "float32" else 1e-2):
                raise RuntimeError(f"The ways disagree at V = {v}: losses {losses}.")
            for way, (seconds, mib, _) in results.items():
                width = 4 if args.dtype == "float32" else 2
                ratio, head = seconds / results[args.ways[-1]][0], v * args.d * width / 2**20
                print(f"| {v:,} | {way} | {seconds:.4g} | {ratio:.2f} | {mib:,.0f} | {head:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
