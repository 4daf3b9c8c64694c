"""Speed and memory of the WebShop environment: `python tools/bench_webshop.py`.

For each number of products a process builds the folder that all workers share, and another opens it and plays. Products
are generated; their descriptions are lengthened by made-up words, a few of them frequent, to the length of real ones.
Seconds are of the processor, so that other work on the machine does not count.

Example: python tools/bench_webshop.py --products 1000 10000 --words 150
"""

import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from opdlight.envs.webshop import WebShopEnv
from opdlight.envs.webshop.catalogue import Catalogue
from opdlight.envs.webshop.generator import generate
from opdlight.envs.webshop.products import Product
from opdlight.system.arguments import argument_parser

VOCABULARY = 200_000


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float:
    """Memory of this process alone: pages of files, which all that read them share, do not count."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Anonymous"].split()[0]) / 1024


def lengthened(products: list[Product], words: int) -> Iterator[Product]:
    stream = np.random.default_rng(0)
    for product in products:
        more = " ".join(f"w{n}" for n in stream.zipf(1.3, words) % VOCABULARY)
        yield product._replace(description=f"{product.description} {more}")


def build(folder: str, products: int, words: int) -> tuple[float, float]:
    """(CPU seconds, peak MiB) of building the folder."""
    made = generate(products, 0)
    before, start = peak_mib(), time.process_time()
    Catalogue.save(lengthened(made, words), Path(folder))
    return time.process_time() - start, peak_mib() - before


def play(folder: str, steps: int, prompt: Any) -> tuple[float, float, float, float]:
    """(CPU seconds to open, MiB of the process's own, steps per CPU second of random actions and of the expert)."""
    env = WebShopEnv(products=30, nouns="words", prompt=prompt)
    before, start = resident_mib(), time.process_time()
    env.catalogue = Catalogue.load(Path(folder), "synthetic")
    opened = time.process_time() - start
    env.training_episodes = len(env.catalogue.picks) - 500
    rates = [rate(env, steps, expert) for expert in (False, True)]
    return opened, resident_mib() - before, rates[0], rates[1]


def rate(env: WebShopEnv, steps: int, expert: bool) -> float:
    """Steps per CPU second, resets included; one random action in three is a search for the words of a title."""
    stream, done, seed = random.Random(0), True, 0
    start = time.process_time()
    for _ in range(steps):
        if done:
            seed += 1
            _, info = env.reset(seed=seed * 7919)
        if expert:
            action = env.expert_action()
        elif stream.random() < 1 / 3 or not info["admissible_commands"]:
            product = env.catalogue.products[stream.randrange(len(env.catalogue.products))]
            action = f"search[{product.title}]"
        else:
            action = stream.choice(info["admissible_commands"])
        if env.fresh_prompt and not expert:
            action = f"<action>{action}</action>"
        _, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
    return steps / (time.process_time() - start)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--products", type=int, nargs="+", default=[1000, 10_000, 100_000], help="sizes of the shop")
    parser.add_argument("--words", type=int, default=150, help="made-up words in a description")
    parser.add_argument("--steps", type=int, default=3000, help="steps of each measurement of speed")
    parser.add_argument("--prompt", choices=("conversation", "paper"), default="conversation", help="the env's prompt")
    arguments = parser.parse_args()
    if min(arguments.products) < 300:
        parser.error("expected --products of at least 300")
    if arguments.words < 0 or arguments.steps < 1:
        parser.error("expected --words of at least 0 and --steps of at least 1")
    for products in arguments.products:
        folder = tempfile.mkdtemp()
        try:
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                seconds, peak = pool.apply(build, (folder, products, arguments.words))
                disk = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
                opened, own, walked, shown = pool.apply(play, (folder, arguments.steps, arguments.prompt))
        finally:
            shutil.rmtree(folder)
        print(f"{products} products: built in {seconds:.1f} CPU s with {peak:.0f} MiB, {disk:.0f} MiB of disk;")
        speeds = f"{walked:.0f} steps/CPU s at random, {shown:.0f} of the expert"
        print(f"  opened in {1000 * opened:.0f} ms, {own:.0f} MiB a process; {speeds}", flush=True)


if __name__ == "__main__":
    main()
