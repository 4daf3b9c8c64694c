"""ReasoningGym: the question is a function of the seed, sides never meet, grading is strict, nothing hangs."""

import contextlib
import dataclasses
import datetime
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

import opdlight.envs  # noqa: F401
from opdlight.envs.base import FIRST_HELD_OUT_SEED, on_side_of
from opdlight.envs.conformance import check_text_env
from opdlight.envs.reasoning_gym import ReasoningGymEnv, config_of, is_formula, worked_sum
from opdlight.errors import ConfigError, NoExpertError

SLOW = {"arc_agi", "codeio", "figlet_font", "futoshiki", "group_anagrams", "knight_swap", "word_ladder"}
NEEDS_PARAMS = {"composite"}
EASY = {"min_terms": 2, "max_terms": 3, "max_digits": 1}


def boxed(answer: object) -> str:
    return f"\\boxed{{{answer}}}"


def reward(env: ReasoningGymEnv, answer: object) -> float:
    return env.step(boxed(answer))[1]


def environments(*names: str) -> Iterator[ReasoningGymEnv]:
    for name in names:
        env = ReasoningGymEnv(name)
        env.reset(seed=3)
        yield env


@pytest.mark.parametrize("dataset", ["chain_sum", "gcd", "propositional_logic", "knights_knaves", "simple_integration"])
def test_conformance(dataset: str) -> None:
    def make() -> ReasoningGymEnv:
        env = gymnasium.make("opdlight/ReasoningGym-v0", dataset=dataset).unwrapped
        assert isinstance(env, ReasoningGymEnv)
        return env

    check_text_env(make)


@pytest.mark.parametrize("dataset", sorted(set(DATASETS) - SLOW - NEEDS_PARAMS))
def test_every_data_set_takes_its_stored_answer_and_no_other(dataset: str) -> None:
    env = ReasoningGymEnv(dataset)
    observation, _ = env.reset(seed=5)
    assert observation.endswith("\nPut your final answer in \\boxed{}.")
    for wrong in ("", "zzz", "(", "None", "-987654321"):
        assert reward(env, wrong) == 0.0
    try:
        action = env.expert_action()
    except NoExpertError:
        return
    if env._entry["answer"].count("{") == env._entry["answer"].count("}"):
        _, got, terminated, truncated, info = env.step(action)
        assert (got, terminated, truncated, info["success"]) == (1.0, True, False, True)


def test_the_question_is_the_item_of_a_data_set_with_this_seed() -> None:
    env = ReasoningGymEnv("chain_sum", EASY, instruction="")
    kept = 0
    for seed in range(40):
        item = reasoning_gym.create_dataset("chain_sum", **EASY, seed=seed, size=1)[0]
        observation, _ = env.reset(seed=seed)
        if on_side_of(seed, item["question"]):
            assert observation == item["question"]
            kept += 1
    assert kept > 20


def test_training_and_held_out_questions_never_meet_even_in_a_tiny_set() -> None:
    env = ReasoningGymEnv("chain_sum", {"min_terms": 2, "max_terms": 2, "max_digits": 1})  # 200 questions in all
    training = {env.reset(seed=seed)[0] for seed in range(1500)}
    held_out = {env.reset(seed=FIRST_HELD_OUT_SEED + seed)[0] for seed in range(500)}
    assert len(training) > 100
    assert len(held_out) > 25
    assert not training & held_out


def test_a_set_with_one_question_cannot_be_held_out() -> None:
    env = ReasoningGymEnv("count_bits", {"min_n": 5, "max_n": 5}, instruction="")
    (question,) = {
        str(reasoning_gym.create_dataset("count_bits", min_n=5, max_n=5, seed=s)[0]["question"]) for s in (1, 2)
    }
    own_side, other_side = sorted((0, FIRST_HELD_OUT_SEED), key=lambda seed: not on_side_of(seed, question))
    assert env.reset(seed=own_side)[0] == question
    with pytest.raises(ConfigError, match=r"`params`.*different training and held-out questions of 'count_bits'"):
        env.reset(seed=other_side)


@pytest.mark.parametrize("seed", [0, 10**9 - 1, 10**9, 2 * 10**9])
def test_large_seeds(seed: int) -> None:
    for name in ("chain_sum", "aiw", "sudoku", "dice"):
        env = ReasoningGymEnv(name)
        assert env.reset(seed=seed) == ReasoningGymEnv(name).reset(seed=seed)


def test_strictness() -> None:
    env = ReasoningGymEnv("chain_sum", EASY)
    env.reset(seed=1)
    right = int(env._entry["answer"])
    for said in (f"{right}", f"{right}.0", f" {right} "):
        assert reward(env, said) == 1.0
    assert env.step(f"<think>It is 99.</think>So {boxed(right)}")[1] == 1.0
    for said in (str(right), f"<think>{boxed(right)}</think>", f"<think>{boxed(right)}", boxed(f"{right} apples")):
        assert env.step(said)[1] == 0.0
    assert env.step(boxed(right + 1))[4]["metrics"] == {
        "answer_found": 1.0,
        "grader_timeouts": 0.0,
        "grader_errors": 0.0,
    }
    assert env.step(f"{right}")[4]["metrics"]["answer_found"] == 0.0
    lenient = ReasoningGymEnv("chain_sum", EASY, answer_format="boxed_or_last_number")
    lenient.reset(seed=1)
    assert lenient.step(f"The sum is {right}.")[1] == 1.0
    assert lenient.step(f"The sum is {right}, not {right + 1}.")[1] == 0.0


def test_an_unreduced_fraction_is_not_simplified() -> None:
    (env,) = environments("fraction_simplification")
    metadata = env._entry["metadata"]
    assert reward(env, f"\\frac{{{metadata['simplified_numerator']}}}{{{metadata['simplified_denominator']}}}") == 1.0
    assert reward(env, f"\\frac{{{metadata['numerator']}}}{{{metadata['denominator']}}}") == 0.0


def test_another_solution_counts_where_the_scorer_takes_it() -> None:
    (env,) = environments("simple_integration")
    stored = env._entry["answer"]
    assert reward(env, stored.replace("C", "7")) == 1.0
    assert reward(env, stored.replace("+ C", "+ x + C")) == 0.0
    (env,) = environments("countdown")
    stored = env._entry["answer"]
    assert re.fullmatch(r"[\d +-]+", stored)  # a sum, but it is asked for itself and not for its value
    assert reward(env, f"0*({stored}) + ({stored})") == 0.0  # numbers used twice
    assert reward(env, f"({stored})") == 1.0
    assert env.expert_action() == boxed(stored)


def test_hostile_answers_are_wrong_and_counted() -> None:
    (env,) = environments("countdown")
    metrics = env.step(boxed("9**9**9**9"))[4]["metrics"]
    assert metrics["grader_timeouts"] == 1.0
    (env,) = environments("rubiks_cube")  # its scorer repeats a move as often as a number says
    assert reward(env, "-987654321") == 0.0
    (env,) = environments("prime_factorization")  # its scorer raises on words
    assert env.step(boxed("zzz"))[4]["metrics"]["grader_errors"] == 1.0
    (env,) = environments("boxnet")  # its scorer raises on numbers
    assert env.step(boxed("9"))[4]["metrics"]["grader_errors"] == 1.0


@pytest.mark.parametrize("dataset", ["n_queens", "binary_matrix", "spiral_matrix", "string_insertion", "countdown",
                                     "puzzle24", "simple_integration", "polynomial_multiplication"])  # fmt: skip
def test_no_answer_is_executed(dataset: str, tmp_path: Path) -> None:
    (env,) = environments(dataset)
    trace = tmp_path / "trace"
    for code in (f"open('{trace}', 'w')", f"__import__('os').system('touch {trace}')", f"[open('{trace}', 'w')]"):
        assert reward(env, code) == 0.0
    assert not trace.exists()


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("3*x**2 + C", True), ("(1 + 2)/3", True), ("sin(x) - exp(2*x)", True), ("0.5*x", True), (".5*x", True),
        ("x.y", False),
        ("exec(1)", False), ("__import__", False), ("x(1).real", False), ("'a'", False), ("[1]", False),
        ("2 .real", False),
        ("1..real", False), ("5.real", False), ("ℯxec", False),
    ],
)  # fmt: skip
def test_is_formula(text: str, safe: bool) -> None:
    assert is_formula(text) is safe


def test_worked_sums_are_right_at_every_step() -> None:
    rng = random.Random(0)
    for _ in range(200):
        terms = [str(rng.randint(-99, 99)) for _ in range(rng.randint(1, 5))]
        expression = " ".join(itertools.chain.from_iterable((rng.choice("+-"), term) for term in terms))[2:]
        steps = worked_sum(expression)
        assert steps.count("=") == len(terms) - 1
        for step in filter(None, steps.split("; ")):
            left, right = step.split(" = ")
            assert eval(left) == int(right)
        if steps:
            assert steps.startswith(expression.split(" ")[0])
            assert int(steps.rpartition("= ")[2]) == eval(expression)


@pytest.mark.parametrize(
    ("dataset", "params"),
    [
        ("chain_sum", {}), ("chain_sum", {"allow_negation": True}), ("chain_sum", {"min_terms": 1, "max_terms": 1}),
        ("decimal_chain_sum", {}), ("basic_arithmetic", {"operators": ["+", "-"], "allow_parentheses": False}),
    ],
)  # fmt: skip
def test_the_expert_of_sums_is_always_right(dataset: str, params: dict[str, object]) -> None:
    env = ReasoningGymEnv(dataset, params)
    thought = 0
    for seed in range(60):
        env.reset(seed=seed)
        action = env.expert_action()
        assert re.fullmatch(r"(<think>[-\d.+ =;]+</think>)?\\boxed\{-?[\d.]+\}", action)
        thought += "<think>" in action
        assert env.step(action)[1] == 1.0
    assert (thought == 0) == (params.get("max_terms") == 1)


def test_where_no_box_is_asked_for_the_expert_works_a_sum_in_plain_text() -> None:
    env = ReasoningGymEnv("chain_sum", {"min_terms": 1, "max_terms": 3}, answer_format="boxed_or_last_number")
    plain = 0
    for seed in range(40):
        env.reset(seed=seed)
        action = env.expert_action()
        assert re.fullmatch(r"[-\d +=;]+|\\boxed\{\d+\}", action)  # one term alone leaves nothing to work
        plain += "=" in action
        assert env.step(action)[1] == 1.0
    assert 0 < plain < 40


def test_the_expert_without_a_sum_gives_the_answer_or_says_there_is_none() -> None:
    gcd, puzzle = environments("gcd", "rush_hour")
    assert gcd.expert_action() == boxed(gcd._entry["answer"])
    with pytest.raises(NoExpertError, match="rush_hour"):
        puzzle.expert_action()


@pytest.mark.parametrize(
    ("dataset", "params", "message"),
    [
        ("chain_summ", {}, "`dataset`.*did you mean 'chain_sum'"),
        ("chain_sum", {"max_term": 3}, "`params.max_term`.*did you mean 'max_terms'"),
        ("chain_sum", {"seed": 3}, "`params.seed`"),
        ("chain_sum", {"min_terms": 5, "max_terms": 3}, "`params`.*max_terms must be >= min_terms"),
        ("chain_sum", {"max_terms": "ten"}, "`params.max_terms` to be a value of type int"),
    ],
)
def test_wrong_arguments(dataset: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReasoningGymEnv(dataset, params)


def test_wrong_answer_format() -> None:
    with pytest.raises(ConfigError, match="`answer_format`"):
        ReasoningGymEnv("chain_sum", answer_format="anything")  # type: ignore[arg-type]


COMPOSITE = {"datasets": [{"name": "gcd", "weight": 1, "config": {}}, {"name": "countdown", "weight": 2, "config": {}}]}


def test_a_composite_poses_and_grades_as_its_parts_do() -> None:
    env = ReasoningGymEnv("composite", COMPOSITE)
    seen = set()
    for seed in range(8):
        env.reset(seed=seed)
        seen.add(env._name)
        assert env.judge(str(env._entry["answer"])).correct
        assert not env.judge("__import__('os').getpid()").correct
    assert seen == {"gcd", "countdown"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, r"`params` to be valid for 'composite' \(Must specify at least one dataset\)"),
        ({"datasets": {"gcd": 1}}, r"`params\.datasets` to be a value of type list, but got"),
        ({"datasets": ["gcd"]}, r"`params\.datasets\[0\]` to be a value of type DatasetSpec, but got 'gcd'"),
        ({"datasets": [{"name": "gcd", "weight": 1}]}, r"`params\.datasets\[0\]` .*missing .* 'config'"),
        ({"datasets": [{"name": "gcd", "weight": "x", "config": {}}]}, r"`params\.datasets\[0\]\.weight` .*float"),
        ({"datasets": [{"name": "gdc", "weight": 1, "config": {}}]}, r"datasets\[0\]\.name` .*did you mean 'gcd'"),
        ({"datasets": [{"name": "gcd", "weight": 1, "config": {"a": 1}}]}, r"`params\.datasets\[0\]\.config\.a`"),
        ({"datasets": [{"name": "composite", "weight": 1, "config": {}}]}, r"no composite itself"),
    ],
)  # fmt: skip
def test_a_wrong_composite_is_one_error(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReasoningGymEnv("composite", params)


def test_params_of_every_data_set_are_checked() -> None:
    for name, (_, config) in DATASETS.items():
        fields = [f.name for f in dataclasses.fields(config) if f.name not in ("seed", "size")]
        if name != "composite":
            config_of("params", name, {f: getattr(config(), f) for f in fields})
        with pytest.raises(ConfigError, match=r"`params\.nonsense`"):
            config_of("params", name, {"nonsense": 1})
        for field, value in itertools.product(fields, ([{"a": 1}], "zzz", -1, None, [], {"x": 1}, 1.5)):
            with contextlib.suppress(ConfigError):  # the one error there may be
                config_of("params", name, {field: value})


def test_enums_dates_and_nested_configs_are_written_as_in_yaml() -> None:
    ReasoningGymEnv("word_sorting", {"transformation": "LOWERCASE"}).reset(seed=1)
    ReasoningGymEnv("complex_arithmetic", {"operations": ["+", "-"], "operations_weights": [0.5, 0.5]}).reset(seed=1)
    typed = config_of("params", "time_intervals", {"min_time": "01:00:00", "max_date": "2030-01-01"})
    assert (typed["min_time"], typed["max_date"]) == (datetime.time(1), datetime.date(2030, 1, 1))
    board = config_of("params", "arc_agi", {"board_format_opts": {"alphabet": list("ABCDEFGHIJ")}})["board_format_opts"]
    assert list(board.alphabet) == list("ABCDEFGHIJ")
    with pytest.raises(ConfigError, match=r"`params\.min_time` .*Invalid isoformat"):
        config_of("params", "time_intervals", {"min_time": "noon"})
