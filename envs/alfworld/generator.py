"""ALFWorld games from a seed: a room, its receptacles and objects, and a task that can be solved in it.

Same engine, rules and wording as ALFWorld, not its benchmark games.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from opdlight.envs.alfworld.game import GameFile
from opdlight.envs.alfworld.wheel import Tables, tables
from opdlight.envs.base import on_side_of

MAX_COPIES = 3  # objects of one class that nobody asked for
LAMP_STANDS = ("Desk", "SideTable", "Dresser", "CoffeeTable", "Shelf")
TOOLS = {  # task type → property that the object needs, receptacle that gives it
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
FURNITURE = {  # room → receptacle → most of them
    "Kitchen": {
        "CounterTop": 3, "Cabinet": 6, "Drawer": 6, "Fridge": 1, "Microwave": 1, "SinkBasin": 1, "StoveBurner": 4,
        "GarbageCan": 1, "DiningTable": 1, "SideTable": 1, "Shelf": 3, "CoffeeMachine": 1,
    },
    "LivingRoom": {
        "Sofa": 1, "ArmChair": 2, "CoffeeTable": 1, "SideTable": 2, "Drawer": 4, "Cabinet": 3, "Shelf": 3,
        "DiningTable": 1, "Desk": 1, "Dresser": 1, "GarbageCan": 1, "Safe": 1,
    },
    "Bedroom": {
        "Bed": 1, "Desk": 1, "SideTable": 2, "Drawer": 6, "Shelf": 4, "Dresser": 1, "ArmChair": 1, "GarbageCan": 1,
        "LaundryHamper": 1, "Safe": 1,
    },
    "Bathroom": {
        "SinkBasin": 1, "CounterTop": 1, "Cabinet": 4, "Drawer": 3, "Toilet": 1, "GarbageCan": 1, "Shelf": 2,
        "BathtubBasin": 1, "HandTowelHolder": 1, "SideTable": 1,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What kind of games to generate; hashable."""

    task_types: tuple[str, ...]
    rooms: tuple[str, ...]
    receptacles: tuple[int, int]  # fewest and most of them in a room
    objects: tuple[int, int]  # fewest and most objects, the wanted ones included


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One game before it has ids."""

    task_type: str
    room: str
    wanted: str  # class of the object
    destination: str  # receptacle class of the goal; empty where the task is to look
    lamp: str  # class of the lamp; empty elsewhere
    receptacles: tuple[str, ...]  # classes, one entry each
    objects: tuple[tuple[str, int], ...]  # class and index of its receptacle
    sentence: str


def generate(design: Design, seed: int) -> GameFile:
    """The game of a seed; training and held-out seeds never share one."""
    for attempt in count():
        rng = random.Random(f"{seed}/{attempt}")
        plan = _plan(design, rng)
        if on_side_of(seed, repr(plan)):
            return _game_file(plan, rng)
    raise AssertionError("unreachable")


def possible_rooms(task_type: str, rooms: Sequence[str]) -> list[str]:
    """The rooms in which the task can be set."""
    return [room for room in rooms if room in tables().task_rooms[task_type]]


def _plan(design: Design, rng: random.Random) -> Plan:
    world = tables()
    task_type = rng.choice(design.task_types)
    room = rng.choice(possible_rooms(task_type, design.rooms))
    lamp = "DeskLamp" if task_type == "look_at_obj_in_light" else ""
    wanted, destination = rng.choice(_targets(world, task_type, room))
    source = rng.choice(sorted(r for r in FURNITURE[room] if r != destination and wanted in world.contents[r]))
    tool = [TOOLS[task_type][1]] if task_type in TOOLS else []
    stand = [rng.choice([r for r in LAMP_STANDS if r in FURNITURE[room]])] if lamp else []
    needed = list(dict.fromkeys([source, *([destination] if destination else []), *tool, *stand]))
    receptacles = _furnish(room, needed, rng.randint(*design.receptacles), rng)
    objects = [(wanted, _place(world, wanted, receptacles, destination, rng)) for _ in range(1 + ("two" in task_type))]
    if lamp:
        objects.append((lamp, rng.choice([i for i, r in enumerate(receptacles) if r in LAMP_STANDS])))
    objects += _clutter(world, room, wanted, receptacles, rng.randint(*design.objects) - len(objects), rng)
    sentence = rng.choice(world.sentences[task_type])
    return Plan(
        task_type=task_type,
        room=room,
        wanted=wanted,
        destination=destination,
        lamp=lamp,
        receptacles=tuple(receptacles),
        objects=tuple(objects),
        sentence=sentence.format(obj=wanted.lower(), recep=destination.lower(), toggle=lamp.lower(), mrecep=""),
    )


def _targets(world: Tables, task_type: str, room: str) -> list[tuple[str, str]]:
    """Every (object, destination) that the task allows in this room and for which the object can lie elsewhere."""
    need, tool = TOOLS.get(task_type, (None, None))
    pairs = []
    for wanted in world.objects[room]:
        holders = sorted(r for r in FURNITURE[room] if wanted in world.contents[r])
        if need is not None and wanted not in world.properties[need]:
            continue
        if task_type == "look_at_obj_in_light":
            pairs += [(wanted, "")] if holders else []
        elif len(holders) > 1:
            pairs += [(wanted, destination) for destination in holders if destination != tool]
    return pairs


def _furnish(room: str, needed: Sequence[str], total: int, rng: random.Random) -> list[str]:
    """The needed receptacles and others up to `total`, sorted by class."""
    spare = [r for r, most in FURNITURE[room].items() for _ in range(most - (r in needed))]
    others = rng.sample(spare, min(len(spare), max(0, total - len(needed))))
    return sorted([*needed, *others])


def _place(world: Tables, kind: str, receptacles: Sequence[str], forbidden: str, rng: random.Random) -> int:
    """Index of a random receptacle that can hold the object and is not of the forbidden class."""
    return rng.choice([i for i, r in enumerate(receptacles) if r != forbidden and kind in world.contents[r]])


def _clutter(
    world: Tables, room: str, wanted: str, receptacles: Sequence[str], number: int, rng: random.Random
) -> list[tuple[str, int]]:
    """`number` objects that the task does not ask for; fewer where the receptacles cannot hold so many kinds."""
    can_hold = frozenset().union(*(world.contents[r] for r in receptacles))
    kinds = [k for k in world.objects[room] if k in can_hold and k != wanted]
    chosen = rng.sample(kinds * MAX_COPIES, min(max(0, number), len(kinds) * MAX_COPIES))
    return [(kind, _place(world, kind, receptacles, "", rng)) for kind in chosen]


def _game_file(plan: Plan, rng: random.Random) -> GameFile:
    world = tables()
    places = rng.sample(
        range(10_000), len(plan.receptacles) + len(plan.objects)
    )  # random, so that numbering tells nothing
    receptacles = [_identifier(kind, place) for kind, place in zip(plan.receptacles, places, strict=False)]
    objects = [
        (kind, _identifier(kind, place), spot)
        for (kind, spot), place in zip(plan.objects, places[len(receptacles) :], strict=True)
    ]
    declared = ["agent1 - agent", "loc_bar_start - location"]
    declared += [f"{kind}Type - otype" for kind in sorted({k for k, _, _ in objects} | {"Knife", "ButterKnife"})]
    declared += [f"{kind}Type - rtype" for kind in sorted({*plan.receptacles, "SinkBasin", "Microwave", "Fridge"})]
    declared += [f"{name} - object" for _, name, _ in objects]
    declared += [f"{name} - receptacle\n{_location(i)} - location" for i, name in enumerate(receptacles)]
    init = ["(atLocation agent1 loc_bar_start)", *_receptacle_facts(world, plan, receptacles)]
    init += [fact for kind, name, spot in objects for fact in _object_facts(world, kind, name, spot, receptacles[spot])]
    # the goal template closes the parenthesis of `define`
    goal = world.goals[plan.task_type].format(obj=plan.wanted, recep=plan.destination, toggle=plan.lamp, mrecep="")
    return GameFile(
        domain=world.domain,
        grammar=world.grammar.replace("UNKNOWN GOAL", plan.sentence),
        problem=_lines(
            ["(define (problem generated) (:domain alfred) (:objects", *declared, ") (:init", *init, ")", goal]
        ),
        task_type=plan.task_type,
        targets={
            "object_target": plan.wanted,
            "parent_target": plan.destination,
            "toggle_target": plan.lamp,
            "mrecep_target": "",
        },
    )


def _receptacle_facts(world: Tables, plan: Plan, names: Sequence[str]) -> list[str]:
    facts = ["(= (total-cost) 0)"]
    for i, (kind, name) in enumerate(zip(plan.receptacles, names, strict=True)):
        facts += [f"(receptacleType {name} {kind}Type)", f"(receptacleAtLocation {name} {_location(i)})"]
        facts += [f"(openable {name})"] if kind in world.openable else []
    kinds = sorted({kind for kind, _ in plan.objects})
    for holder in sorted(set(plan.receptacles)):
        facts += [f"(canContain {holder}Type {kind}Type)" for kind in kinds if kind in world.contents[holder]]
    return facts


def _object_facts(world: Tables, kind: str, name: str, spot: int, receptacle: str) -> list[str]:
    able = [p for p in ("Heatable", "Coolable", "Cleanable", "Sliceable", "Toggleable") if kind in world.properties[p]]
    able += [] if kind in world.properties["Toggleable"] else ["Pickupable"]
    return [
        f"(objectType {name} {kind}Type)",
        f"(inReceptacle {name} {receptacle})",
        f"(objectAtLocation {name} {_location(spot)})",
        *(f"({p.lower()} {name})" for p in able),
    ]


def _identifier(kind: str, place: int) -> str:
    """An id in ALFRED's style; a basin is written `Sink|…|SinkBasin` there, or its name would say so twice."""
    name = f"{kind.removesuffix('Basin')}_bar_{place:04}"
    return f"{name}_bar_{kind}" if kind.endswith("Basin") else name


def _location(index: int) -> str:
    return f"loc_bar_{index}"


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)
