"""A shop's products, search index, prices and goals: in memory, or in a folder that all processes share."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np

from opdlight.envs.webshop.goals import GOAL_SOURCES, Goal, GoalSource, draw_goals, make_goal
from opdlight.envs.webshop.index import Index, map_file
from opdlight.envs.webshop.products import HumanInstruction, Product

REMEMBERED = 2048  # products of a folder that a process keeps decoded


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """What all visits to a shop have in common; nothing of it changes.

    Args:
        products: D of them.
        index: of their texts.
        prices: [D] what each costs.
        source: of the goals.
        picks: [G] all goals in their order (`goals.PICK`).
    """

    products: Sequence[Product]
    index: Index
    prices: np.ndarray
    source: GoalSource
    picks: np.ndarray

    @classmethod
    def of(cls, products: Sequence[Product], source: GoalSource) -> "Catalogue":
        """The catalogue of these products, in memory."""
        index = Index.build((product.asin, product.document) for product in products)
        prices, picks = draw_goals(products, source)
        return cls(products, index, prices, source, picks)

    @classmethod
    def save(cls, products: Iterable[Product], folder: Path) -> None:
        """Write what `load` reads; no more than one product is held in memory at a time."""
        Index.build(_written(products, folder)).save(folder)
        stored = StoredProducts(folder)
        for source in GOAL_SOURCES:
            prices, picks = draw_goals(stored, source)
            np.save(folder / f"{source}_prices.npy", prices)
            np.save(folder / f"{source}_goals.npy", picks)

    @classmethod
    def load(cls, folder: Path, source: GoalSource) -> "Catalogue":
        """The catalogue in a folder; products and index stay on disk, in pages that processes share."""
        prices, picks = (np.load(folder / f"{source}_{name}.npy", mmap_mode="r") for name in ("prices", "goals"))
        return cls(StoredProducts(folder), Index.load(folder), prices, source, picks)

    def goal(self, number: int) -> Goal:
        """The goal of this number in the fixed order."""
        product, variant, price_upper = self.picks[number].tolist()
        return make_goal(self.products[product], self.source, variant, price_upper)


class StoredProducts(Sequence[Product]):
    """Products in a file, one JSON array a line, decoded when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._ends = np.load(folder / "ends.npy", mmap_mode="r")
        self._lines = map_file(folder / "products.jsonl")
        self._decoded = lru_cache(maxsize=REMEMBERED)(self._decode)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> Product: ...
    @overload
    def __getitem__(self, number: slice) -> list[Product]: ...
    def __getitem__(self, number: int | slice) -> Product | list[Product]:
        if isinstance(number, slice):
            return [self._decoded(n) for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._decoded(number % len(self))

    def __iter__(self) -> Iterator[Product]:
        return map(self._decode, range(len(self)))

    def _decode(self, number: int) -> Product:
        start = int(self._ends[number - 1]) if number else 0
        product = Product._make(json.loads(self._lines[start : int(self._ends[number])]))
        human = [HumanInstruction._make(given) for given in product.human_instructions]
        return product._replace(human_instructions=human)


def _written(products: Iterable[Product], folder: Path) -> Iterator[tuple[str, str]]:
    """Write the products, and pass on of each what is indexed."""
    ends, end = [], 0
    with (folder / "products.jsonl").open("wb") as file:
        for product in products:
            end += file.write(json.dumps(product, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            ends.append(end)
            yield product.asin, product.document
    np.save(folder / "ends.npy", np.array(ends, np.int64))
