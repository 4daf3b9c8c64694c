"""WebShop's goals: what to buy, made from the instructions of the products, in an order that is fixed for good."""

import itertools
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from opdlight.envs.base import HELD_OUT_SHARE
from opdlight.envs.webshop.products import Product

GoalSource = Literal["synthetic", "human"]
GOAL_SOURCES: tuple[GoalSource, ...] = get_args(GoalSource)
SEED = 233  # with which the published engine shuffles its goals
HELD_OUT = 500
NO_LIMIT = 1_000_000.0
PRICE_BOUNDS = range(10, 1000, 10)
# which goal of which product; the whole of WebShop has millions, so they are rows of an array
PICK = np.dtype([("product", np.uint32), ("variant", np.uint32), ("price_upper", np.float64)])


@dataclass(frozen=True, slots=True)
class Goal:
    """What an episode asks for."""

    product: Product
    instruction: str
    attributes: Sequence[str]
    options: dict[str, str] | list[str]  # synthetic: group → value; human: values
    price_upper: float

    @property
    def wanted(self) -> list[tuple[str, ...]]:
        """The options, as (name, value) of synthetic goals and as (value,) of human ones."""
        return [*self.options.items()] if isinstance(self.options, dict) else [(value,) for value in self.options]


def draw_goals(products: Sequence[Product], source: GoalSource, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """The products' prices [D] and all goals [G] (`PICK`) in their order, as the original engine draws them.

    A product with two prices costs something between them. The `variant` of a goal counts the product's combinations
    of options, or its human instructions.
    """
    stream = random.Random(seed)
    prices = array("d", (p.prices[0] if len(p.prices) == 1 else stream.uniform(*p.prices) for p in products))
    owners, variants, limits = array("I"), array("I"), array("d")
    for number, (product, price) in enumerate(zip(products, prices, strict=True)):
        if source == "human":
            own = [variant for variant, given in enumerate(product.human_instructions) if given.attributes]
            bounds = [_price_upper(price, stream) for _ in own]
        elif product.instruction is not None:
            own = [variant for variant, _ in enumerate(_combinations(product))]
            bounds = [_price_upper(price, stream)] * len(own)
        else:
            continue
        owners.extend([number] * len(own))
        variants.extend(own)
        limits.extend(bounds)
    picks = np.empty(len(owners), PICK)
    picks["product"], picks["variant"], picks["price_upper"] = owners, variants, limits
    order = list(range(len(picks)))
    random.Random(seed).shuffle(order)
    return np.array(prices), picks[order]


def held_out_count(goals: int) -> int:
    """How many of the goals, the first ones, are held out: 500 as published, of fewer than 2,000 one in four."""
    return min(HELD_OUT, goals // HELD_OUT_SHARE)


def make_goal(product: Product, source: GoalSource, variant: int, price_upper: float) -> Goal:
    """A goal of a product."""
    limit = f", and price lower than {price_upper:.2f} dollars" if price_upper < NO_LIMIT else ""
    if source == "human":
        given = product.human_instructions[variant]
        return Goal(product, given.text.strip(".") + limit, given.attributes, given.options, price_upper)
    values = next(itertools.islice(_combinations(product), variant, None))
    options = dict(zip(sorted(product.options), values, strict=True))
    wanted = ", and ".join(f"{name}: {value}" for name, value in options.items())
    text = f"{product.instruction} with {wanted}" if wanted else str(product.instruction)
    return Goal(product, text + limit, product.instruction_attributes, options, price_upper)


def _combinations(product: Product) -> itertools.product:
    """All choices of one value of each option, names sorted."""
    return itertools.product(*(product.options[name] for name in sorted(product.options)))


def _price_upper(price: float, stream: random.Random) -> float:
    """One of the four bounds above the price, but never the lowest; no limit for what is nearly 1,000 or more."""
    above = [bound for bound in PRICE_BOUNDS if bound > price][:4]
    return float(max(stream.sample(above, 2))) if len(above) >= 2 else NO_LIMIT
