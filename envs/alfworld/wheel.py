"""Read from the alfworld package: its PDDL domain, text grammar, and tables of objects, receptacles and goals."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec

from opdlight.errors import MissingDependencyError

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
ROOMS = ("Kitchen", "LivingRoom", "Bedroom", "Bathroom")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """ALFRED's common sense, by class name (`Mug`, `CounterTop`)."""

    domain: str  # PDDL
    grammar: str
    contents: Mapping[str, frozenset[str]]  # receptacle → objects that it can hold
    openable: frozenset[str]
    properties: Mapping[str, frozenset[str]]  # Heatable, Coolable, Cleanable, Toggleable, Sliceable → objects
    objects: Mapping[str, tuple[str, ...]]  # room → objects seen in its floor plans
    task_rooms: Mapping[str, frozenset[str]]
    goals: Mapping[str, str]  # task type → PDDL goal template
    sentences: Mapping[str, tuple[str, ...]]  # task type → templates of the task in words


def require() -> None:
    """Raise MissingDependencyError where the extra is not installed."""
    if find_spec("alfworld") is None or find_spec("textworld") is None:
        raise MissingDependencyError.extra("ALFWorld", "alfworld")


@cache
def tables() -> Tables:
    """The wheel's tables, read once."""
    from alfworld.gen import constants, goal_library

    root = files("alfworld")
    holdable = set().union(*constants.VAL_RECEPTACLE_OBJECTS.values())
    objects = {}
    for room in ROOMS:
        plans = [root / "gen" / "layouts" / f"FloorPlan{n}-objects.json" for n in constants.SCENE_TYPE[room]]
        objects[room] = tuple(
            sorted(holdable.intersection(*[set().union(*(json.loads(p.read_text()) for p in plans))]))
        )
    return Tables(
        domain=(root / "data" / "alfred.pddl").read_text(),
        grammar=(root / "data" / "alfred.twl2").read_text(),
        contents={r: frozenset(v) for r, v in constants.VAL_RECEPTACLE_OBJECTS.items()},
        openable=frozenset(constants.OPENABLE_CLASS_LIST),
        properties={p: frozenset(v) for p, v in constants.VAL_ACTION_OBJECTS.items()},
        objects=objects,
        task_rooms={t: frozenset(constants.GOALS_VALID[t]) for t in TASK_TYPES},
        goals={t: goal_library.gdict[t]["pddl"].replace("#", "-") for t in TASK_TYPES},
        sentences={t: tuple(goal_library.gdict[t]["templates"]) for t in TASK_TYPES},
    )
