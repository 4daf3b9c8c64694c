"""What top-p costs while decoding on a CPU: top-p 1, top-p by vLLM's sort, and top-p by opdlight's nucleus, in turn.

All sequences are decoded together to the same length, so tokens a second differ by the sampling alone. The nucleus and
the sort give the same tokens for the same seeds, which is checked. Ratios are of runs beside each other.

    python tools/bench_sampling.py --sequences 32 --tokens 24
    python tools/bench_sampling.py --model lab/student --sequences 64
"""

import sys

from opdlight.system.beginning import begin_script

if __name__ == "__main__":
    begin_script()

import argparse
import functools
import statistics
import time

from rich.console import Console
from rich.table import Table

from opdlight.errors import OpdError
from opdlight.models.loading import load_tokenizer, resolve_model
from opdlight.rollout import Request, Sampling, VLLMEngine
from opdlight.system.arguments import argument_parser


def arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="smollm2", help="Hugging Face folder, or a bundled model")
    parser.add_argument("--sequences", type=int, default=32, help="decoded at the same time")
    parser.add_argument("--tokens", type=int, default=24, help="of each sequence")
    parser.add_argument("--top-p", type=float, default=0.9, help="mass of the nucleus, below 1")
    parser.add_argument("--turns", type=int, default=3, help="runs of each way, after one to warm up")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="dtype of the engine")
    parser.add_argument("--threads", type=int, help="CPU threads of the engine")
    args = parser.parse_args()
    if min(args.sequences, args.turns) < 1 or args.tokens < 2:
        parser.error("expected --sequences and --turns of at least 1 and --tokens of at least 2")
    if not 0 < args.top_p < 1:
        parser.error(f"expected --top-p between 0 and 1, but got {args.top_p}")
    if args.threads is not None and args.threads < 1:
        parser.error("expected --threads of at least 1")
    return args


def decode(engine: VLLMEngine, prompts: list[list[int]], tokens: int, top_p: float) -> tuple[float, list[list[int]]]:
    """Tokens a second after the step that computes the prompts, and the completions."""
    found: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        sampling = Sampling(top_p=top_p)
        engine.add_request(Request(request_id=str(i), prompt_ids=prompt, max_tokens=tokens, sampling=sampling, seed=i))
    engine.step()
    start = time.perf_counter()
    while engine.has_unfinished():
        found |= {c.request_id: c.token_ids for c in engine.step()}
    seconds = time.perf_counter() - start
    assert all(len(ids) == tokens for ids in found.values())
    return len(prompts) * (tokens - 1) / seconds, [found[str(i)] for i in range(len(prompts))]


def main() -> None:
    args = arguments()
    console = Console(width=None if Console().is_terminal else 120)
    try:
        folder = resolve_model(args.model)
        tokenizer = load_tokenizer(folder)
    except OpdError as error:
        raise SystemExit(f"error: {error}") from error
    questions = [f"Tell me what the number {i} and the sea have in common." for i in range(args.sequences)]
    prompts = [list(tokenizer(question)["input_ids"]) for question in questions]
    with console.status("starting vLLM"):
        engine = VLLMEngine(
            folder,
            dtype=args.dtype,
            max_model_len=max(map(len, prompts)) + args.tokens,
            max_num_seqs=args.sequences,
            threads=args.threads,
        )
    engine._stop_ids = []  # every sequence goes on to its last token, beyond the end of its text
    engine._vllm.SamplingParams = functools.partial(engine._vllm.SamplingParams, ignore_eos=True)
    own = engine._own_top_p
    ways = {"top-p 1": (1.0, own), "vLLM's sort": (args.top_p, False), "nucleus": (args.top_p, own)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    drawn: dict[str, list[list[int]]] = {}
    try:
        for turn in range(-1, args.turns):
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                top_p, engine._own_top_p = ways[name]
                speed, drawn[name] = decode(engine, prompts, args.tokens, top_p)
                which = "warm-up" if turn < 0 else f"turn {turn + 1} of {args.turns}"
                print(f"{which}, {name}: {speed:,.0f} tokens/s", file=sys.stderr, flush=True)
                if turn >= 0:
                    speeds[name].append(speed)
    finally:
        engine.close()

    title = f"{args.model}, {args.sequences} sequences, {args.tokens} tokens each, top-p {args.top_p:g}"
    table = Table("", "tokens/s, median (range)", "× top-p 1, median (range)", title=title)
    for name, found in speeds.items():
        ratios = [speed / whole for speed, whole in zip(found, speeds["top-p 1"], strict=True)]
        table.add_row(name, spread(found, ".0f"), spread(ratios, ".2f"))
    console.print(table)
    pairs = [a / b for a, b in zip(speeds["nucleus"], speeds["vLLM's sort"], strict=True)]
    console.print(f"nucleus / vLLM's sort, tokens per second: {spread(pairs, '.2f')} in {args.turns} turns")
    tokens = zip(drawn["nucleus"], drawn["vLLM's sort"], strict=True)
    same = sum(a == b for a, b in tokens)
    console.print(f"{same} of {args.sequences} sequences have the same tokens with both")


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    main()
