"""What the language model reads of the shop."""

from collections.abc import Sequence

from opdlight.envs.templates import PromptTemplate, Step
from opdlight.envs.webshop.session import PAGE_SIZE, SEPARATOR, Session

CONVERSATION = (
    "You are shopping. Find a product that fits the request, choose its options and buy it. "
    "Answer with one action: search[words], or click[x] where [x] is on the page."
)
UNAVAILABLE = "That is not possible here.\n"
LONGEST = 13_000  # characters of a prompt; a longer one is given without its history, as verl-agent does
LATER = {  # the slots of a template, in the third turn
    "task": "Find me long sleeve shirts with color: red, and price lower than 40.00 dollars",
    "history": [Step(1, "'Search'", "search[red shirt]"), Step(2, "'Back to Search' [SEP] 'Next >'", "click[next >]")],
    "observation": "'Back to Search' [SEP] 'Page 2 (Total results: 9)' [SEP] '< Prev' [SEP] 'Next >'",
    "admissible_actions": ["click[back to search]", "click[< prev]", "click[next >]"],
}
# one turn as a complete prompt: the task, the last two steps, the page, what can be done
PAPER = PromptTemplate(
    r"""
You are an expert agent in the WebShop online store. Your task is to: {{ task }}.
{% if history %}
You have taken {{ history | length }} steps so far. The last {{ history[-2:] | length }} were:
{% for step in history[-2:] %}
[Observation {{ step.number }}: '{{ step.observation }}', Action {{ step.number }}: '{{ step.action }}']
{% endfor %}
You are now at step {{ history | length + 1 }}.
{% endif %}
Your current observation is: {{ observation }}
Your admissible actions are:
['{{ admissible_actions | join("',\n'") }}']

First reason step by step about the situation, within <think> </think> tags. Then choose one admissible action and write it within <action> </action> tags.
""".removeprefix("\n"),  # noqa: E501
    ({**LATER, "history": []}, LATER),
    required=["observation"],
)


def conversation_page(session: Session) -> str:
    """The page in plain lines; what can be clicked stands in brackets."""
    product = session.product
    if session.page == "start":
        return "You are at the search bar."
    if session.page == "results":
        first = (session.number - 1) * PAGE_SIZE
        shown = session.shown
        count = f"Results {first + 1} to {first + len(shown)} of {len(session.hits)}:" if shown else "No results here."
        products = {asin: session.shop.products[number] for asin, number in shown.items()}
        rows = [f"[{asin}] {p.title}, {p.price_tag}" for asin, p in products.items()]
        turn = ["< prev", "next >"] if session.number > 1 else ["next >"]
        return "\n".join([count, *rows, _buttons(["back to search", *turn])])
    assert product is not None
    if session.page == "item":
        options = [f"{name}: {_buttons(values)}" for name, values in product.options.items()]
        chosen = [f"Chosen: {', '.join(session.options.values())}"] if session.options else []
        buttons = _buttons(["buy now", *session.tabs, "< prev", "back to search"])
        return "\n".join([f"{product.title}, {product.price_tag}", *options, *chosen, buttons])
    texts = session.pieces()[4:] or ["Nothing is written here."]
    return "\n".join([*texts, _buttons(["< prev", "back to search"])])


def paper_page(session: Session) -> str:
    """The pieces of the page behind the instruction, each in quotes."""
    behind = session.pieces()[3 if session.page == "start" else 2 :]
    return SEPARATOR.join(f"'{piece}'" for piece in behind)


def admissible_actions(session: Session) -> list[str]:
    """All that can be done, as the paper's prompt lists it; searching is listed on the start page only."""
    search = ["search[<your query>]"] if session.page == "start" else []
    return [*search, *(f"click[{button}]" for button in session.clickables())]


def _buttons(names: Sequence[str]) -> str:
    return " ".join(f"[{name}]" for name in names)
