"""WebShop's products: what its engine keeps of a row of `items_shuffle.json`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from opdlight.errors import ConfigError

LONGEST_ASIN = 10
NO_PRICE = (100.0,)
NO_ATTRIBUTES = ("DUMMY_ATTR",)
_NOT_NUMERIC = re.compile(r"[^\d.]")


class HumanInstruction(NamedTuple):
    """What a person was asked to buy: one row of `items_human_ins.json`."""

    text: str
    attributes: list[str]
    options: list[str]  # values, without the names of their groups


class Product(NamedTuple):
    """One product."""

    asin: str
    title: str
    description: str
    bullet_points: list[str]
    prices: list[float]  # one, or the lower and the upper one
    price_tag: str
    options: dict[str, list[str]]  # group → values, lower case
    attributes: list[str]
    category: str
    query: str
    product_category: str  # levels joined by " › "
    instruction: str | None  # the synthetic one, with its attributes
    instruction_attributes: list[str]
    human_instructions: list[HumanInstruction]

    @property
    def document(self) -> str:
        """The text that the search engine indexes: of the bullet points only the first one."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options.items())
        first = self.bullet_points[0] if self.bullet_points else ""
        return f"{self.title} {self.description} {first} {options}".lower()


def load_products(
    rows: Iterable[Mapping[str, Any]],
    attributes: Mapping[str, Mapping[str, Any]],
    human_instructions: Mapping[str, list[Mapping[str, Any]]],
    key: str = "WEBSHOP_DATA",
) -> Iterator[Product]:
    """The valid products of the rows, in order: an asin is no `nan`, not too long and not one that was seen before.

    Args:
        rows: of `items_shuffle.json`.
        attributes: asin → attributes and synthetic instruction (`items_ins_v2.json`).
        human_instructions: asin → instructions (`items_human_ins.json`).
        key: what named the files, for errors.

    Raises:
        ConfigError: naming the key and the row, if a field is missing or a price is no number.
    """
    seen = set()
    for number, row in enumerate(rows):
        asin = row.get("asin") if isinstance(row, Mapping) else None
        try:
            if asin == "nan" or len(row["asin"]) > LONGEST_ASIN or asin in seen:
                continue
            yield _product(row, attributes.get(row["asin"], {}), human_instructions.get(row["asin"], []))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            expected = f"products of WebShop (row {number}, asin {asin!r}: {error!r})"
            raise ConfigError.wrong(key, expected=expected, got=str(row)[:80]) from error
        seen.add(asin)


def _product(row: Mapping[str, Any], known: Mapping[str, Any], human: list[Mapping[str, Any]]) -> Product:
    points = row["small_description"]
    prices, tag = parse_price(row["pricing"])
    return Product(
        asin=row["asin"],
        title=row["name"],
        description=row["full_description"],
        bullet_points=points if isinstance(points, list) else [points],
        prices=prices,
        price_tag=tag,
        options={
            name.lower(): [value["value"].strip().replace("/", " | ").lower() for value in values]
            for name, values in (row["customization_options"] or {}).items()
            if values is not None
        },
        attributes=list(known.get("attributes", NO_ATTRIBUTES)),
        category=row["category"],
        query=row["query"].lower().strip(),
        product_category=row["product_category"],
        instruction=known.get("instruction"),
        instruction_attributes=known.get("instruction_attributes") or [],
        human_instructions=[
            HumanInstruction(
                text=given["instruction"],
                attributes=list(given["instruction_attributes"]),
                options=list(given["instruction_options"]),
            )
            for given in human
        ],
    )


def parse_price(text: str | None) -> tuple[list[float], str]:
    """The prices of a product and its tag; a product without a price costs 100.

    >>> parse_price("$1,249.00"), parse_price("$24.00 - $31.00"), parse_price(None)
    (([1249.0], '$1249.0'), ([24.0, 31.0], '$24.0 to $31.0'), ([100.0], '$100.0'))
    """
    prices = [float(_NOT_NUMERIC.sub("", part)) for part in text.split("$")[1:]][:2] if text else list(NO_PRICE)
    if not prices:
        raise ValueError(f"the price {text!r} has no $")
    return prices, " to ".join(f"${price}" for price in prices)
