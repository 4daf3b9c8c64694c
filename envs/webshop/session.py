"""One visit to the shop: its pages, what can be clicked on them, and what a click does.

The labels of the pages are WebShop's: MIT License, Copyright (c) 2023 Princeton Natural Language Processing.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from opdlight.envs.webshop.index import Hit, Index
from opdlight.envs.webshop.products import Product

PAGE_SIZE = 10
SEPARATOR = " [SEP] "
TABS = ("description", "features", "reviews")
_ACTION = re.compile(r"(.+)\[(.+)\]")
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"}  # as the original's templates escape JSON

Page = Literal["start", "results", "item", "tab", "done"]


class Shop(Protocol):
    """What a session needs to know of a catalogue."""

    @property
    def products(self) -> Sequence[Product]:
        """All products, by number."""

    @property
    def index(self) -> Index:
        """The search engine, which knows products by the same numbers."""


def parse_action(text: str) -> tuple[str, str] | None:
    """Name and argument of `name[argument]`; what follows the last bracket does not count.

    >>> parse_action("search[Red Shoes] please"), parse_action("click[a][b]"), parse_action("search[]")
    (('search', 'red shoes'), ('click[a]', 'b'), None)
    """
    match = _ACTION.match(text)
    return (match.group(1), match.group(2).lower()) if match else None


class Session:
    """A visit with one instruction.

    Args:
        shop: products and search index.
        instruction: shown on every page.
        show_attributes: whether an item page has the tab of its attributes, which makes the task easier.
    """

    def __init__(self, shop: Shop, instruction: str, show_attributes: bool = False) -> None:
        self.shop, self.instruction = shop, instruction
        self.tabs = (*TABS, "attributes") if show_attributes else TABS
        self.page: Page = "start"
        self.query = ""
        self.number = 1  # of the page of results
        self.item: int | None = None  # the product whose page is open, by its number
        self.tab = ""
        self.options: dict[str, str] = {}  # what was chosen, in this order

    @property
    def state(self) -> tuple[Page, str, int, int | None, str, tuple[tuple[str, str], ...]]:
        """All that the next page depends on beside the action."""
        return self.page, self.query, self.number, self.item, self.tab, tuple(self.options.items())

    @property
    def hits(self) -> Sequence[Hit]:
        """All results of the query."""
        return self.shop.index.search(self.query)

    @property
    def shown(self) -> dict[str, int]:
        """The products on this page of results: asin in lower case → number."""
        first = (self.number - 1) * PAGE_SIZE
        numbers = [hit.document for hit in self.hits[first : first + PAGE_SIZE]]
        return {self.shop.products[number].asin.lower(): number for number in numbers}

    @property
    def product(self) -> Product | None:
        """The product whose page is open."""
        return None if self.item is None else self.shop.products[self.item]

    def clickables(self) -> list[str]:
        """What can be clicked, in the order of the page; `search` is a button that does nothing."""
        if self.page == "start":
            return ["search"]
        if self.page == "results":
            turn = ["< prev", "next >"] if self.number > 1 else ["next >"]
            return ["back to search", *turn, *self.shown]
        if self.page == "item":
            assert self.product is not None
            values = dict.fromkeys(value for group in self.product.options.values() for value in group)
            buttons = dict.fromkeys(["back to search", "< prev", *self.tabs, "buy now"])
            return [*(buttons | values)]
        return ["back to search", "< prev"] if self.page == "tab" else []

    def act(self, name: str, argument: str) -> bool:
        """Do `name[argument]`; False, and nothing happens, if that is not possible here. Searching always is."""
        if self.page == "done":
            return False
        if name == "search":
            self._search(argument, 1)
        elif name == "click" and argument != "search" and argument in self.clickables():
            self._click(argument)
        else:
            return False
        return True

    def _search(self, query: str, number: int) -> None:
        self.page, self.query, self.number = "results", query, number
        self.item, self.options = None, {}

    def _click(self, button: str) -> None:
        group = self._group_of(button) if self.page == "item" else None
        if group is not None:
            self.options[group] = button
        elif button == "back to search":
            self.page, self.item, self.options = "start", None, {}
        elif button == "< prev" and self.page == "tab":
            self.page = "item"
        elif button in ("< prev", "next >"):
            step = 0 if self.page == "item" else 1 if button == "next >" else -1
            self._search(self.query, self.number + step)
        elif button == "buy now":
            self.page = "done"
        elif self.page == "results":
            self.page, self.item = "item", self.shown[button]
        else:
            self.page, self.tab = "tab", button

    def _group_of(self, value: str) -> str | None:
        """The group of options that a value belongs to; of several the last one."""
        assert self.product is not None
        groups = [name for name, values in self.product.options.items() if value in values]
        return groups[-1] if groups else None

    def text(self, score: float | None = None) -> str:
        """The page as the original shows it in its text mode: `pieces`, joined."""
        return SEPARATOR.join(self.pieces(score))

    def pieces(self, score: float | None = None) -> list[str]:
        """The texts of the page in order; the page after a purchase shows the score."""
        if self.page == "start":
            return ["WebShop", "Instruction:", self.instruction, "Search"]
        if self.page == "done" and self.product:
            return _receipt(self.product.asin, self.options, score)
        return ["Instruction:", self.instruction, *self._body()]

    def _body(self) -> list[str]:
        if self.page == "results":
            turn = ["< Prev", "Next >"] if self.number > 1 else ["Next >"]
            counts = f"Page {self.number} (Total results: {len(self.hits)})"
            shown = [self.shop.products[number] for number in self.shown.values()]
            rows = [text for p in shown for text in _visible(p.asin, p.title, p.price_tag)]
            return ["Back to Search", counts, *turn, *rows]
        product = self.product
        assert product is not None
        if self.page == "item":
            options = [text for name, values in product.options.items() for text in _visible(name, *values)]
            price = f"Price: {product.price_tag}"
            tabs = (tab.capitalize() for tab in self.tabs)
            texts = [*options, *_visible(product.title), price, "Rating: N.A.", *tabs, "Buy Now"]
        else:
            texts = self._tab_texts(product)
        return ["Back to Search", "< Prev", *texts]

    def _tab_texts(self, product: Product) -> list[str]:
        if self.tab == "description":
            return _visible(product.description)
        if self.tab == "features":
            return _visible(*(f" {point} " for point in product.bullet_points))  # the page has blanks around each
        if self.tab == "attributes":
            return _visible(*product.attributes, product.category, product.query, product.product_category)
        return []


def _visible(*texts: str) -> list[str]:
    """The texts that a page shows: an empty one is none, white space is one unless it has a line break."""
    return [text.strip() for text in texts if text and (text.strip() or "\n" not in text)]


def _receipt(asin: str, options: Mapping[str, str], score: float | None) -> list[str]:
    """The page after a purchase, most of whose fields the original leaves empty."""
    chosen = json.dumps(options, sort_keys=True)
    for character, escaped in _UNSAFE.items():
        chosen = chosen.replace(character, escaped)
    start = ["Thank you for shopping with us!", "Your code:", "None", "(Paste it in your MTurk interface.)"]
    bought = ["Purchased", "asin", asin, "options", chosen, "attrs", "None", "category", "None", "query", "None"]
    target = ["product category", "None", "Target", "asin", "options", "attrs", "price upper", "instuction text"]
    goal = ["category", "product category", "query", "Goal", "None", "Reward"]
    return [*start, *bought, *target, *goal, "Your score (min 0.0, max 1.0)", str(score), "Reward Details", "None"]
