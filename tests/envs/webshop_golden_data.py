"""Golden data of WebShop's original engine (tests/envs/webshop_golden), and a catalogue that is made from it."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from opdlight.envs.webshop.catalogue import Catalogue
from opdlight.envs.webshop.goals import GoalSource, draw_goals
from opdlight.envs.webshop.index import Index
from opdlight.envs.webshop.products import Product, load_products

FOLDER = Path(__file__).parent / "webshop_golden"
FILES = ("items_shuffle", "items_ins_v2", "items_human_ins")


def golden(name: str) -> Any:
    return json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


@cache
def products() -> tuple[Product, ...]:
    return tuple(load_products(*map(golden, FILES)))


@cache
def index() -> Index:
    return Index.build((product.asin, product.document) for product in products())


@cache
def catalogue(source: GoalSource, seed: int) -> Catalogue:
    prices, picks = draw_goals(products(), source, seed)
    return Catalogue(products(), index(), prices, source, picks)


@cache
def title_nouns() -> dict[str, list[str]]:
    """Of the model with which the rewards were recorded."""
    return golden("title_nouns")["en_core_web_sm 3.8.0"]


def write_files(folder: Path, ending: str = "") -> None:
    """The catalogue as the original's files."""
    for name in FILES:
        end = ending if name != "items_human_ins" else ""
        (folder / f"{name}{end}.json").write_text(json.dumps(golden(name), ensure_ascii=False, indent=1))
