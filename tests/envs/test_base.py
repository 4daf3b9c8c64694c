"""The space, the split of contents between training and held-out seeds, and the end of the thinking."""

import subprocess
import sys

import pytest

from opdlight.envs.base import (
    FIRST_HELD_OUT_SEED,
    TextEnv,
    UnicodeText,
    after_thinking,
    on_side_of,
    redraw,
    unknown_name,
)
from opdlight.errors import NoExpertError


def test_space_knows_unicode_and_its_limit() -> None:
    space = UnicodeText(max_length=5)
    assert space.contains("中→é\\{")
    assert not space.contains("123456")
    assert not space.contains("\ud800")
    assert not space.contains(b"abc")
    assert space == UnicodeText(max_length=5)
    assert space != UnicodeText(max_length=6)


def test_space_samples_are_members_and_seeded() -> None:
    one, other = UnicodeText(seed=3), UnicodeText(seed=3)
    samples = [one.sample() for _ in range(50)]
    assert samples == [other.sample() for _ in range(50)]
    assert all(one.contains(text) for text in samples)
    assert any(not text.isascii() for text in samples)


def test_every_content_belongs_to_exactly_one_side() -> None:
    contents = [f"{n} + {n * n}" for n in range(4000)]
    held_out = [text for text in contents if on_side_of(FIRST_HELD_OUT_SEED, text)]
    training = [text for text in contents if on_side_of(FIRST_HELD_OUT_SEED - 1, text)]
    assert sorted(held_out + training) == sorted(contents)
    assert 0.22 < len(held_out) / len(contents) < 0.28
    assert held_out == [text for text in contents if on_side_of(2 * 10**9, text)]


def test_redraws_start_at_the_seed_and_stay_in_31_bits() -> None:
    draws = [redraw(2 * 10**9, attempt) for attempt in range(100)]
    assert draws[0] == 2 * 10**9
    assert len(set(draws)) == 100
    assert all(0 <= draw < 2**31 for draw in draws)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", "12"), ("<think>a</think>12", "12"), ("a</think>12", "12"), ("<think>a", None),
        ("<think>a</think><think>b", None), ("x</think>y</think>z", "z"), ("", ""),
    ],
)  # fmt: skip
def test_after_thinking(text: str, expected: str | None) -> None:
    assert after_thinking(text) == expected


def test_unknown_name_gives_the_nearest_or_all() -> None:
    assert "did you mean 'chain_sum'" in str(unknown_name("dataset", "chain_summ", ["chain_sum", "gcd"]))
    assert "one of chain_sum, gcd" in str(unknown_name("dataset", "zzz", ["gcd", "chain_sum"]))


def test_an_env_without_an_expert_says_so() -> None:
    with pytest.raises(NoExpertError, match="TextEnv has no expert"):
        TextEnv().expert_action()


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import opdlight.envs, sys; heavy = {'torch', 'sympy', 'reasoning_gym', 'pyarrow', 'vllm', 'alfworld'};"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": "."}
    )
    assert done.stdout.strip() == "set()"
