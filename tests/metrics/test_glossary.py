"""The glossary finds and prints its entries."""

import contextlib

import pytest

from opdlight.metrics.__main__ import main
from opdlight.metrics.glossary import GLOSSARY, describe, search


def test_the_glossary_finds_patterns() -> None:
    assert describe("coverage/overlap/alfworld") is not None
    assert describe("coverage/overlap") is None
    assert describe("nonsense") is None


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["coverage/"], ["coverage/teacher_mass/{task}", "coverage/student_mass/{task}"]),
        (["mass"], ["coverage/student_mass/{task}", "signal/negative_mass/{task}"]),
        (["GRAD_NORM"], ["optimizer/grad_norm"]),
        (["clipping"], ["optimizer/grad_norm"]),  # a word of the meaning
        (["2-norm", "gradient"], ["optimizer/grad_norm"]),
        (["rollout/success/sums"], ["rollout/success/{task}"]),  # a key as it is logged
        (["micro_batch"], ["optimizer/gradient_snr", "optimizer/out_of_memory"]),  # "micro-batches", micro_batch_tokens
        (["padding"], ["throughput/rank_imbalance"]),  # a word of the estimator
        (["kl"], ["kl/k1/{task}"]),
    ],
)
def test_the_glossary_is_searched_by_any_part_of_a_name_or_meaning(words: list[str], keys: list[str]) -> None:
    found = search(words)
    assert set(keys) <= set(found)
    assert len(found) < 12
    assert search([]) == GLOSSARY


def test_the_glossary_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["metrics"])
    main()
    whole = capsys.readouterr().out
    assert all(key in whole for key in GLOSSARY)
    monkeypatch.setattr("sys.argv", ["metrics", "student", "support"])
    main()
    some = capsys.readouterr().out
    assert [key for key in GLOSSARY if key in some] == list(search(["student", "support"]))
    monkeypatch.setattr("sys.argv", ["metrics", "nothing", "at all"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "no entry has 'nothing' and 'at all' in its key or description" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("packing", "similar: padding;"),
        ("mini_batch", "similar: batch, batches;"),
        ("coverag", "coverage/teacher_mass"),  # a part is enough
        ("stalenes_", "similar: staleness;"),
        ("webshop", "{task} in a key stands for any task"),
    ],
)
def test_a_word_that_no_entry_has_leads_on(
    word: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["metrics", word])
    with contextlib.suppress(SystemExit):
        main()
    said = capsys.readouterr()
    assert expected in said.out + said.err
