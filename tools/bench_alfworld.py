"""Speed and memory of the ALFWorld environment beside TextWorld's own engine: `python tools/bench_alfworld.py`.

Example: python tools/bench_alfworld.py --games 200 --no-stock
"""

import random
import resource
import time
from collections.abc import Callable, Iterable
from typing import Any

from opdlight.envs.alfworld.env import ALFWorldEnv
from opdlight.envs.alfworld.game import Game, Play
from opdlight.envs.alfworld.generator import Design, generate
from opdlight.envs.alfworld.wheel import ROOMS, TASK_TYPES
from opdlight.system.arguments import argument_parser

SIZES = {"small": ((3, 6), (3, 6)), "large": ((10, 20), (8, 16))}  # receptacles, objects


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def resident_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def walk(step: Callable[[str], Any], admissible: Callable[[], list[str]], steps: int) -> Callable[[], None]:
    """Random admissible actions."""

    def run() -> None:
        rng = random.Random(0)
        for _ in range(steps):
            step(rng.choice(admissible()))

    return run


def walk_game(play: Play, steps: int) -> Callable[[], None]:
    return walk(play.step, lambda: play.admissible, steps)


def stock(design: Design, seed: int, steps: int) -> tuple[float, float]:
    """(seconds of load and reset, steps per second) of PddlEnv under AlfredDemangler."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs import PddlEnv

    file = generate(design, seed)
    env = AlfredDemangler(PddlEnv(textworld.EnvInfos(admissible_commands=True)), shuffle=False)
    env.load({"pddl_domain": file.domain, "grammar": file.grammar, "pddl_problem": file.problem})
    reset = seconds(env.reset)
    took = seconds(walk(env.step, lambda: env.state["admissible_commands"], steps))
    return reset, steps / took


def fast(design: Design, seeds: Iterable[int], steps: int) -> tuple[float, float, float]:
    """(seconds of a cold reset, of a cached one, steps per second)."""
    Game.load(generate(design, 10**6))  # imports, parses the grammar
    games: list[Game] = []
    cold = seconds(lambda: games.extend(Game.load(generate(design, seed)) for seed in seeds)) / len(list(seeds))
    cached = seconds(lambda: [Play(game) for game in games]) / len(games)
    rate = 0.0
    for game in games:
        rate += steps / seconds(walk_game(Play(game), steps)) / len(games)
    return cold + cached, cached, rate


def growth(games: int) -> None:
    """Print the peak memory of the process as games are played once each."""
    env = ALFWorldEnv()
    for seed in range(games):
        if seed % max(games // 5, 1) == 0:
            print(f"  after {seed:5} games {resident_mib():7.1f} MiB")
        env.reset(seed=seed)
        for _ in range(5):
            env.step(env.expert_action())
    print(f"  after {games:5} games {resident_mib():7.1f} MiB")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--games", type=int, default=2000, help="games of the memory measurement")
    parser.add_argument("--resets", type=int, default=20, help="games of the speed measurement, of each size")
    parser.add_argument("--no-stock", action="store_true", help="leave TextWorld's engine out")
    arguments = parser.parse_args()
    if min(arguments.games, arguments.resets) < 1:
        parser.error("expected --games and --resets of at least 1")
    for name, (receptacles, objects) in SIZES.items():
        design = Design(task_types=TASK_TYPES, rooms=ROOMS, receptacles=receptacles, objects=objects)
        cold, cached, rate = fast(design, range(arguments.resets), 100)
        print(f"{name}: reset cold {1000 * cold:.1f} ms, cached {1000 * cached:.1f} ms, {rate:.0f} steps/s", flush=True)
        if not arguments.no_stock:
            reset, rate = stock(design, 0, 40)
            print(f"{name}: stock reset {1000 * reset:.0f} ms, {rate:.0f} steps/s", flush=True)
    print("peak memory:")
    growth(arguments.games)


if __name__ == "__main__":
    main()
