"""A catalogue made from a seed: invented products with WebShop's schema, so that the shop opens without its files."""

import random
from collections.abc import Sequence

from opdlight.envs.webshop.products import HumanInstruction, Product, parse_price
from opdlight.envs.webshop.wares import BRANDS, CHOICES, KINDS, Kind

# product numbers that a small model can copy: B0 and four of these
_SYLLABLES = [consonant + vowel for consonant in "BDFGKLMNPRSTVZ" for vowel in "AEIOU"]
_TITLES = ("{brand} {name}, {one}, {two}", "{brand} {one} {name} with {two}", "{one} {name} by {brand} - {two}")
_DESCRIPTIONS = (
    "Our {name} is made for every day. You get {two} and {one} at a fair price.",
    "Meet the {name} of {brand}: {one}, {two}, and made to last.",
    "A {name} that you will want to keep. {one} comes with {two}.",
)
_POINTS = ("Made with care: {}", "Why you will like it: {}", "Tested by {brand}: {}", "For your comfort: {}")
_REQUESTS = (
    "i am looking for {query} with {attributes}{options}.",
    "i need {query} that offer {attributes}{options}",
    "can you find me {query}? {attributes} would be great{options}.",
)


def generate(count: int, seed: int) -> list[Product]:
    """`count` different products; the kinds take turns, so each has as many as the others."""
    stream = random.Random(f"webshop/{seed}")
    asins = dict[str, None]()
    while len(asins) < count:
        asins["B0" + "".join(stream.choices(_SYLLABLES, k=4))] = None
    kinds = [KINDS[number % len(KINDS)] for number in range(count)]
    stream.shuffle(kinds)
    return [_product(asin, kind, stream) for asin, kind in zip(asins, kinds, strict=True)]


def _product(asin: str, kind: Kind, stream: random.Random) -> Product:
    brand, name = stream.choice(BRANDS), stream.choice(kind.names.split("|"))
    own = stream.sample(kind.attributes.split("|"), stream.randint(3, 4))
    words = {"brand": brand, "name": name, "one": own[0].title(), "two": own[1].title()}
    options = {}
    for key in kind.options.split():
        group, values = CHOICES[key]
        options[group] = _some(values.split("|"), stream)
    price, tag = parse_price(_price(kind, stream))
    asked = own[: stream.randint(1, 3)]
    stream.shuffle(asked)
    return Product(
        asin=asin,
        title=stream.choice(_TITLES).format(**words),
        description=stream.choice(_DESCRIPTIONS).format(**words),
        bullet_points=[stream.choice(_POINTS).format(text, brand=brand) for text in stream.sample(own, len(own))],
        prices=price,
        price_tag=tag,
        options=options,
        attributes=own,
        category=kind.category,
        query=kind.query,
        product_category=kind.levels,
        instruction=f"Find me {', '.join(asked[1:])} {kind.query} with {asked[0]}".replace("  ", " "),
        instruction_attributes=asked,
        human_instructions=[_request(kind, own, options, stream)],
    )


def _some(values: Sequence[str], stream: random.Random) -> list[str]:
    """Two to four of the values, in their order."""
    chosen = set(stream.sample(values, stream.randint(2, 4) if len(values) > 3 else 2))
    return [value for value in values if value in chosen]


def _price(kind: Kind, stream: random.Random) -> str:
    """A price as WebShop's files have it; one product in eight costs from … to …."""
    low, high = kind.prices
    price = stream.randint(low, high) - stream.choice((0.01, 0.05, 0.5))
    upper = f" - ${price * stream.uniform(1.1, 1.4):.2f}" if stream.random() < 1 / 8 else ""
    return f"${price:.2f}{upper}"


def _request(kind: Kind, own: list[str], options: dict[str, list[str]], stream: random.Random) -> HumanInstruction:
    """What a person may have written: some attributes, and values of some options without their names."""
    attributes = stream.sample(own, stream.randint(1, 2))
    values = [stream.choice(group) for group in stream.sample(list(options.values()), stream.randint(1, len(options)))]
    wanted = "".join(f", {value}" for value in values)
    text = stream.choice(_REQUESTS).format(query=kind.query, attributes=" and ".join(attributes), options=wanted)
    return HumanInstruction(text, attributes, values)
