"""The fast engine says word for word what TextWorld's PddlEnv under ALFWorld's AlfredDemangler says."""

import random
import re
import sys
from itertools import pairwise, product
from typing import Any

import pytest

from opdlight.envs.alfworld.game import NOTHING_HAPPENS, Game, GameFile, Play
from opdlight.envs.alfworld.generator import Design, generate
from opdlight.envs.alfworld.pddl import Literal, applicable, changes, compiled, holds
from opdlight.envs.alfworld.pddl_parser import parse_problem
from opdlight.envs.alfworld.planner import solve
from opdlight.envs.alfworld.text import Scene, _query, load_grammar
from opdlight.envs.alfworld.wheel import ROOMS, TASK_TYPES, tables
from opdlight.errors import EnvError

pytestmark = pytest.mark.alfworld
SMALL = Design(task_types=TASK_TYPES, rooms=ROOMS, receptacles=(3, 6), objects=(3, 6))


def small_game(task_type: str, seed: int) -> GameFile:
    return generate(Design(task_types=(task_type,), rooms=ROOMS, receptacles=(3, 6), objects=(3, 6)), seed)


def stock_env(file: GameFile, **requests: bool) -> Any:
    """ALFWorld's own stack, slow and sure."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs import PddlEnv

    env = AlfredDemangler(PddlEnv(textworld.EnvInfos(admissible_commands=True, **requests)), shuffle=False)
    argv = sys.argv
    try:
        env.load({"pddl_domain": file.domain, "grammar": file.grammar, "pddl_problem": file.problem})
        env.first = env.reset()
    finally:
        sys.argv = argv
    return env


def busy_command(admissible: list[str], rng: random.Random) -> str:
    """Mostly a command that changes something."""
    idle = ("go to", "look", "inventory", "examine", "help")
    busy = [command for command in admissible if not command.startswith(idle)]
    return rng.choice(busy if busy and rng.random() < 0.6 else admissible)


def assert_same_transcript(file: GameFile, steps: int, seed: int) -> None:
    env, play = stock_env(file), Play(Game.load(file))
    rng = random.Random(seed)
    assert play.introduction == env.first.feedback
    assert play.admissible == env.first.admissible_commands
    for n in range(steps):
        command = "put mug 99 in heaven" if n == 5 else busy_command(play.admissible, rng)
        state, _, _ = env.step(command)
        assert (command, play.step(command)) == (command, state.feedback)
        assert (command, play.admissible) == (command, state.admissible_commands)
        assert (command, play.won) == (command, state.won)


@pytest.mark.parametrize("seed", [0, 10**9])
@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_transcripts_equal_textworlds(task_type: str, seed: int) -> None:
    assert_same_transcript(small_game(task_type, seed), steps=15, seed=seed)


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_textworlds_plan_wins_here_with_the_same_words(task_type: str) -> None:
    file = small_game(task_type, 1)
    env, play = stock_env(file, policy_commands=True), Play(Game.load(file))
    plan = env.first.policy_commands
    assert plan
    env.request_infos.policy_commands = False
    for command in plan:
        assert not play.won
        assert play.step(command) == env.step(command)[0].feedback
    assert play.won


def test_receptacles_that_share_a_place_as_in_some_original_games() -> None:
    file = small_game("pick_and_place_simple", 2)
    shared = re.sub(r"loc_bar_\d+", "loc_bar_0", re.sub(r"loc_bar_[1-9] - location\n", "", file.problem))
    file = GameFile(**{**{name: getattr(file, name) for name in file.__slots__}, "problem": shared})
    assert_same_transcript(file, steps=20, seed=0)
    # what was moved to the neighbour lies "next to" the first receptacle: the only text with a negated fact
    env, play = stock_env(file), Play(Game.load(file))
    feedback = ""
    for command in [*solve(play), "look"]:
        feedback = play.step(command)
        assert feedback == env.step(command)[0].feedback
    assert "Next to it, you see a " in feedback


def test_matches_equal_textworlds() -> None:
    from textworld.logic import GameLogic, Placeholder, Proposition, Rule, State, Variable

    pairs = [("b", "a"), ("a", "b"), ("a", "a"), ("b", "c")]
    types = dict.fromkeys("abc", "thing")
    state = State(
        GameLogic.parse("type thing { }"), [Proposition("p", [Variable(x, "thing") for x in p]) for p in pairs]
    )
    scene = Scene({"p": set(pairs)}, {}, types)
    for start in ({}, {"x": "b"}, {"y": "c"}, {"w": "a"}):
        mapping = {Placeholder(name, "thing"): Variable(value, "thing") for name, value in start.items()}
        for text in ("p(x: thing, y: thing)", "p(x: thing, y: thing) & p(y: thing, z: thing)"):
            expected = state.all_assignments(Rule.parse_conjunctive_query(text), mapping)
            assert list(scene.matches(_query(text), start)) == [
                {p.name: v.name for p, v in m.items()} for m in expected
            ]


def test_playthroughs_do_not_touch_the_game_or_each_other() -> None:
    game = Game.load(generate(SMALL, 0))
    plan = solve(Play(game))
    first, second = Play(game), Play(game)
    for command in plan:
        first.step(command)
    assert first.won
    assert not second.won
    assert second.introduction == first.introduction == Play(game).introduction
    assert second.admissible == Play(game).admissible


def test_an_inadmissible_command_changes_nothing() -> None:
    play = Play(Game.load(generate(SMALL, 0)))
    before = {predicate: set(rows) for predicate, rows in play.facts.items()}
    assert play.step("take moon 1 from sky 1") == NOTHING_HAPPENS
    assert play.facts == before


def test_games_that_differ_in_the_goal_only_share_the_parsed_grammar() -> None:
    first, goal = load_grammar(tables().grammar.replace("UNKNOWN GOAL", "put a mug in desk"))
    second, other = load_grammar(tables().grammar.replace("UNKNOWN GOAL", "put two pen in drawer"))
    assert first is second
    assert (goal, other) == ("put a mug in desk", "put two pen in drawer")


DOMAIN = """(define (domain d) (:types thing place)  ; a comment (with parentheses
 (:action move :parameters (?x - thing ?from - place ?to - place)
  :precondition (and (at ?x ?from) (not (blocked ?to)))
  :effect (and (not (at ?x ?from)) (at ?x ?to) (increase (total-cost) 1)))
 (:action swap :parameters (?x - thing)
  :precondition (or (lit ?x) (exists (?y - thing) (and (not (= ?x ?y)) (lit ?y))))
  :effect (and (when (lit ?x) (not (lit ?x))) (when (not (lit ?x)) (lit ?x)))))"""
PROBLEM = """(define (problem p) (:domain d) (:objects A B - thing K L M - place)
 (:init (= (total-cost) 0) (at A K) (at B L) (blocked M) (lit A))
 (:goal (and (exists (?x - thing) (lit ?x)) (exists (?x - thing) (at ?x l)))))"""


def test_pddl_semantics() -> None:
    problem = parse_problem(DOMAIN, PROBLEM)
    move, swap = problem.actions
    # moves to where one is are not offered; blocked places neither
    assert sorted(applicable(move, problem.facts)) == [("a", "k", "l"), ("b", "l", "k")]
    assert sorted(applicable(swap, problem.facts)) == [("a",), ("b",)]
    assert changes(swap, ("a",), problem.facts) == [("lit", ("a",), False)]
    assert changes(swap, ("b",), problem.facts) == [("lit", ("b",), True)]
    # what is deleted and added stays true
    assert changes(move, ("a", "k", "k"), problem.facts) == [("at", ("a", "k"), True)]
    # the two ?x of the goal are two variables
    assert holds(problem.goal, problem.facts)
    assert not holds(problem.goal, {**problem.facts, "lit": set()})
    [goal] = problem.goal
    assert len(list(goal(problem.facts, ()))) == 1


def test_a_compiled_conjunction_finds_what_trying_every_binding_finds() -> None:
    draw, objects = random.Random(0), ("a", "b", "c")
    found_any = 0
    for _ in range(300):
        rows = list(product(objects, repeat=2))
        facts = {name: {row for row in rows if draw.random() < 0.4} for name in ("p", "q")}
        terms = ["?x", "?y", "?z", "a"]
        binding = [Literal(draw.choice("pq"), (name, draw.choice(terms))) for name in ("?x", "?y", "?z")]
        checks = [
            Literal(
                draw.choice(["p", "q", "="]), (draw.choice(terms), draw.choice(terms)), positive=draw.random() < 0.5
            )
            for _ in range(draw.randrange(3))
        ]
        given = ("?x",) if draw.random() < 0.5 else ()
        expected = []
        for values in product(objects, repeat=3):
            bound = dict(zip(("?x", "?y", "?z"), values, strict=True), a="a")
            args = [(literal, tuple(bound[a] for a in literal.args)) for literal in (*binding, *checks)]
            if all(
                ((x == y) if li.predicate == "=" else (x, y) in facts[li.predicate]) == li.positive
                for li, (x, y) in args
            ):
                expected.append(values)
        if given:
            expected = [values for values in expected if values[0] == "b"]
        match = compiled((*binding, *checks), given=given, wanted=("?x", "?y", "?z"))
        found = list(match(facts, ("b",) * len(given)))
        assert sorted(set(found)) == expected
        found_any += bool(found)
    assert 50 < found_any < 250


@pytest.mark.parametrize("many", [20, 21, 60])
def test_conjunctions_of_any_length_compile(many: int) -> None:
    """Python allows 20 loops and 100 indentations in each other."""
    values = [f"?{i}" for i in range(many)]
    chain = [Literal("next", pair) for pair in pairwise(values)]
    checks = [Literal("odd", (f"n{2 * i}",), positive=False) for i in range(150)]
    facts = {"next": {(f"n{i}", f"n{i + 1}") for i in range(many)}, "odd": {(f"n{i}",) for i in range(1, 400, 2)}}
    wanted = (values[-1], values[0])
    match = compiled((*checks[:75], *chain, *checks[75:]), given=("?0",), wanted=wanted)
    assert list(match(facts, ("n1",))) == [(f"n{many}", "n1")]
    assert list(match({**facts, "odd": {("n200",)}}, ("n1",))) == []


def test_names_of_a_game_are_text_and_not_code() -> None:
    names = ["it's", 'say "a"', "{x}", "%s", "back\\slash", "v0", "r0", "given", "b?"]
    facts = {"is'\"{": {(name,) for name in names}}
    for name in names:
        match = compiled((Literal("is'\"{", (name,)), Literal("is'\"{", ("?it's",))), wanted=("?it's",))
        assert sorted(match(facts, ())) == sorted((n,) for n in names)
        assert list(match({"is'\"{": facts["is'\"{"] - {(name,)}}, ())) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(not (blocked ?to))", "(forall (?y - thing) (lit ?y))", "forall"),
        ("(not (blocked ?to))", "(not (and (blocked ?to)))", "not and"),
        ("(not (blocked ?to))", "(not (blocked ?nowhere))", "nowhere"),
        ("(define (domain d)", "((define (domain d)", "balanced"),
        ("(define (domain d)", "define (domain d)", "closed that was not opened"),
    ],
)
def test_pddl_that_is_not_understood_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        parse_problem(DOMAIN.replace(old, new), PROBLEM)


def test_a_problem_without_a_goal_is_refused() -> None:
    with pytest.raises(EnvError, match=":goal"):
        parse_problem(DOMAIN, PROBLEM.replace("(:goal", "(:aim"))
    with pytest.raises(EnvError, match="Your task is to"):
        load_grammar("grammar :: no goal")
