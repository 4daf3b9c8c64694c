"""An expert that searches with the words of the instruction and buys the first product that earns the full reward."""

from functools import cached_property
from typing import NamedTuple

from opdlight.envs.webshop.catalogue import Catalogue
from opdlight.envs.webshop.goals import Goal
from opdlight.envs.webshop.nouns import Nouns
from opdlight.envs.webshop.products import Product
from opdlight.envs.webshop.reward import option_matches, reward
from opdlight.envs.webshop.session import PAGE_SIZE, Session
from opdlight.errors import NoExpertError


class Plan(NamedTuple):
    """What to buy and how to find it."""

    query: str
    rank: int  # of the product among the hits, from 0
    item: int  # the product's number
    values: list[str]  # options to click


class Expert:
    """Knows the goal and the catalogue; asked at any page, it goes on from there.

    The query is the instruction without its price, which a model can copy. Of what is found, the first product that
    fits the goal in full is taken, else the goal's own, for which its title is the query if need be.
    """

    def __init__(self, catalogue: Catalogue, goal: Goal, nouns: Nouns) -> None:
        self.catalogue, self.goal, self.nouns = catalogue, goal, nouns

    def act(self, session: Session) -> str:
        """The next action; calling it twice gives the same answer."""
        plan = self.plan
        if session.page in ("item", "tab") and session.item == plan.item:
            if session.page == "tab":
                return "click[< prev]"
            missing = (value for value in plan.values if value not in session.options.values())
            return f"click[{next(missing, 'buy now')}]"
        if session.page == "results" and session.query == plan.query:
            page = plan.rank // PAGE_SIZE + 1
            if session.number == page:
                return f"click[{self.catalogue.products[plan.item].asin.lower()}]"
            return "click[next >]" if session.number < page else "click[< prev]"
        return f"search[{plan.query}]"

    @cached_property
    def plan(self) -> Plan:
        """The purchase that the expert is after."""
        title = _query(self.goal.product.title)
        for query in (_query(self.goal.instruction.split(", and price lower")[0]), title):
            for rank, hit in enumerate(self.catalogue.index.search(query)):
                product = self.catalogue.products[hit.document]
                values = self.choose(product)
                price = float(self.catalogue.prices[hit.document])
                if reward(self.goal, product, values, price, self.nouns).total == 1.0:
                    return Plan(query, rank, hit.document, values)
        return self._own(title)

    def _own(self, query: str) -> Plan:
        hits = [hit.document for hit in self.catalogue.index.search(query)]
        if not hits:
            raise NoExpertError(f"Nothing in the shop is found by the title of the goal, {self.goal.product.title!r}.")
        own = [rank for rank, item in enumerate(hits) if self.catalogue.products[item].asin == self.goal.product.asin]
        rank = own[0] if own else 0
        return Plan(query, rank, hits[rank], self.choose(self.catalogue.products[hits[rank]]))

    def choose(self, product: Product) -> list[str]:
        """For each option of the goal the value to click: the same in the same group, else the first that counts."""
        values = []
        for option in self.goal.wanted:
            *name, value = option
            groups = [product.options.get(name[0], [])] if name else []
            groups += product.options.values()
            same = [value] if any(value in group for group in groups) else []
            near = [other for group in groups for other in group if option_matches(option, other)]
            values += [*same, *near][:1]
        return list(dict.fromkeys(values))


def _query(text: str) -> str:
    """A text as the argument of an action."""
    return " ".join(text.lower().replace("[", " ").replace("]", " ").split())
