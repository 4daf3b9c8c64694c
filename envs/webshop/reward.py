"""WebShop's reward: how well a purchase fits the goal, from 0 to 1."""

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import NamedTuple

from opdlight.envs.webshop.goals import Goal
from opdlight.envs.webshop.nouns import Nouns
from opdlight.envs.webshop.products import Product
from opdlight.errors import MissingDependencyError

_COLORS = (  # from WebShop, MIT License, Copyright (c) 2023 Princeton Natural Language Processing
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo "
    "caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream "
    "crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather "
    "indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha "
    "multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal "
    "rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise "
    "violet walnut wheat white wine yellow"
)
COLORS = tuple(_COLORS.split())  # a text that contains one of them counts as the first that it contains
ALIKE = 85  # two texts match if their similarity, rounded, is above
_NOT_ASCII = dict.fromkeys(range(128, 256))
_SEPARATOR = re.compile(r"\W")


class Reward(NamedTuple):
    """The parts of a reward."""

    total: float  # type score · (attributes + options + price that match) / (all attributes + all options + 1)
    type_score: float  # 1, 0.5, 0.1 or 0: is it the kind of product that was asked for?
    attribute_matches: int
    option_matches: int
    price_match: bool
    query_match: bool
    category_match: bool
    title_score: float


def reward(goal: Goal, bought: Product, options: Collection[str], price: float, nouns: Nouns) -> Reward:
    """The reward for buying a product with these values of its options, whatever their groups are called."""
    attributes = sum(_has_attribute(bought, attribute) for attribute in goal.attributes)
    wanted = goal.wanted
    matching = sum(any(option_matches(option, value) for value in options) for option in wanted)
    cheap = price <= goal.price_upper
    score, query, category, title = _type_score(goal.product, bought, nouns)
    share = (attributes + matching + cheap) / (len(goal.attributes) + len(wanted) + 1)
    return Reward(score * share, score, attributes, matching, cheap, query, category, title)


def option_matches(wanted: tuple[str, ...], value: str) -> bool:
    """Whether a chosen value is the wanted option, (name, value) or (value,), or nearly so."""
    return alike(_color(value), _wanted_text(wanted))


def weights(goal: Goal) -> Mapping[str, float]:
    """What attributes, options and price weigh in the reward; options only where the goal has any."""
    parts = {"attributes": len(goal.attributes), "options": len(goal.options), "price": 1}
    return {name: count / sum(parts.values()) for name, count in parts.items() if count or name != "options"}


@lru_cache(maxsize=1 << 14)
def alike(one: str, other: str) -> bool:
    """Whether two texts are nearly the same set of words, as thefuzz's token_set_ratio > 85 has it."""
    try:
        from rapidfuzz.fuzz import token_set_ratio
    except ImportError as error:
        raise MissingDependencyError("WebShop's reward needs the package rapidfuzz: pip install rapidfuzz") from error
    one, other = _cleaned(one), _cleaned(other)
    return bool(one and other) and round(token_set_ratio(one, other)) > ALIKE


def _cleaned(text: str) -> str:
    """Thefuzz's own processing: no characters 128–255, blanks for what is no word character, lower case.

    >>> _cleaned("('size', 'Full/Queen')"), _cleaned("Café★")
    ('size    full queen', 'caf')
    """
    return _SEPARATOR.sub(" ", text.translate(_NOT_ASCII)).lower().strip()


def _color(text: str) -> str:
    """The first colour word, in alphabetical order, that the text contains, also within a word; else the text."""
    return next((color for color in COLORS if color in text), text)


def _wanted_text(option: tuple[str, ...]) -> str:
    """A goal's option as the original compares it: of a named one it takes the pair as Python writes it.

    So a pair counts as a colour only if its name or its value is a colour word and nothing else.
    """
    if len(option) == 1:
        return _color(option[0])
    return next((color for color in COLORS if color in option), str(option))


def _has_attribute(product: Product, attribute: str) -> bool:
    if any(alike(own, attribute) for own in product.attributes):
        return True
    texts = (product.title, " ".join(product.bullet_points), product.description)
    return any(attribute in text.lower() for text in texts)


def _type_score(goal: Product, bought: Product, nouns: Nouns) -> tuple[float, bool, bool, float]:
    """The type score, and what it comes from: same query, two common category levels, share of the title's nouns."""
    query = bought.query == goal.query
    category = len(_levels(bought) & _levels(goal)) >= 2
    wanted = nouns(goal.title)
    # repeated nouns count in the denominator only
    title = len(set(wanted) & set(nouns(bought.title))) / len(wanted) if wanted else 0.2
    score = 1.0 if query or category or title > 0.2 else 0.5
    if title < 0.1:  # whatever else matches
        score = 0.1 if title else 0.0
    return score, query, category, title


def _levels(product: Product) -> set[str]:
    return {level.strip() for level in product.product_category.split("›")}
