"""WebShop's original files: which are read, what is kept on disk, who builds it, and what is said if one is wrong."""

import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opdlight.envs.webshop import WebShopEnv, analyzer, originals
from opdlight.envs.webshop.catalogue import Catalogue
from opdlight.envs.webshop.goals import SEED, GoalSource
from opdlight.envs.webshop.nouns import nouns_by
from opdlight.envs.webshop.originals import built_folder
from opdlight.envs.webshop.reward import alike
from opdlight.errors import ConfigError, MissingDependencyError
from tests.envs.webshop_golden_data import catalogue, golden, products, title_nouns, write_files


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of original files, and a cache that is empty."""
    monkeypatch.setenv("OPDLIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    write_files(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("source", ["synthetic", "human"])
def test_the_catalogue_on_disk_is_the_one_in_memory(source: GoalSource, data: Path) -> None:
    stored, memory = Catalogue.load(built_folder(str(data), 1000), source), catalogue(source, SEED)
    assert list(stored.products) == list(memory.products) == list(products())
    assert stored.products[-1] == products()[-1] and stored.products[3:5] == list(products()[3:5])
    with pytest.raises(IndexError):
        stored.products[len(products())]
    assert np.array_equal(stored.prices, memory.prices) and np.array_equal(stored.picks, memory.picks)
    for query in ("color", "soft slippers", "nothing of this kind"):
        assert stored.index.search(query) == memory.index.search(query)
    assert all(stored.goal(number) == memory.goal(number) for number in range(len(memory.picks)))


def test_an_environment_plays_the_original_files(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBSHOP_DATA", str(data))
    env, other = (WebShopEnv(source="original", nouns="words", goals="human") for _ in range(2))
    assert env.catalogue is other.catalogue
    assert (env.training_episodes, env.held_out_episodes) == (16, 5)
    solved = 0
    for seed in range(16):
        env.reset(seed=seed)
        info: dict[str, Any] = {}
        while "success" not in info:
            *_, info = env.step(env.expert_action())
        solved += info["success"]
    assert solved == 16


def test_the_first_thousand_have_files_of_their_own(data: Path) -> None:
    def count(number: int | None) -> int:
        return len(Catalogue.load(built_folder(str(data), number), "synthetic").products)

    assert [count(number) for number in (4, 1000, 2000, None)] == [3, 40, 40, 40]  # the fourth row is skipped
    rows = golden("items_shuffle")[:10]
    (data / "items_shuffle_1000.json").write_text(json.dumps(rows))
    (data / "items_ins_v2_1000.json").write_text(json.dumps(golden("items_ins_v2")))
    assert [count(number) for number in (4, 1000, 2000, None)] == [3, 9, 40, 40]


def test_a_file_is_read_in_pieces(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(originals, "_CHUNK", 7)
    assert list(originals._rows("data", data / "items_shuffle.json", None)) == golden("items_shuffle")


def test_it_is_built_once_and_anew_when_a_file_changes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    save = Catalogue.save.__func__  # type: ignore[attr-defined]

    def counted(cls: type, *arguments: Any) -> None:
        built.append(arguments)
        save(cls, *arguments)

    monkeypatch.setattr(Catalogue, "save", classmethod(counted))
    with ThreadPoolExecutor(4) as pool:  # a lock of the file system, as between processes
        folders = set(pool.map(lambda _: built_folder(str(data), 1000), range(4)))
    assert len(built) == len(folders) == 1
    (data / "items_human_ins.json").write_text("{}")
    assert built_folder(str(data), 1000) not in folders
    assert len(built) == 2


def test_what_a_killed_process_left_is_built_anew(data: Path) -> None:
    folder = built_folder(str(data), 1000)
    folder.rename(folder.with_name(f".{folder.name}"))
    (folder.with_name(f".{folder.name}") / "products.jsonl").unlink()
    assert (built_folder(str(data), 1000) / "products.jsonl").is_file()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("items_shuffle.json", None, "data.*a folder with items_shuffle.json"),
        ("items_ins_v2.json", None, "data.*a folder with items_ins_v2.json"),
        ("items_shuffle.json", "{}", "data.*an array of products in items_shuffle.json"),
        ("items_shuffle.json", '[{"asin": "A"', r"data.*JSON in items_shuffle.json"),
        ("items_shuffle.json", '[{"asin": "A"}]', r"data.*row 0, asin 'A': KeyError\('small_description'\)"),
        ("items_shuffle.json", '["A"]', r"data.*row 0"),
        ("items_shuffle.json", '[{"asin": "nan"}]', "data.*at least one product in items_shuffle.json"),
        ("items_human_ins.json", "[]", "data.*an object by asin in items_human_ins.json"),
        ("items_human_ins.json", "{", "data.*JSON in items_human_ins.json"),
    ],
)
def test_wrong_files(file: str, text: str | None, message: str, data: Path) -> None:
    (data / file).unlink()
    if text is not None:
        (data / file).write_text(text)
    with pytest.raises(ConfigError, match=message):
        WebShopEnv(source="original", data=str(data), nouns="words")


def test_a_price_without_a_number(data: Path) -> None:
    rows = golden("items_shuffle")[:1]
    (data / "items_shuffle.json").write_text(json.dumps([{**rows[0], "pricing": "on request"}]))
    with pytest.raises(ConfigError, match=r"row 0, asin 'B0GLD00233'.*'on request' has no \$"):
        built_folder(str(data), 1000)


def test_files_that_nobody_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"WEBSHOP_DATA.*set the variable, or the argument `data`"):
        WebShopEnv(source="original")


def test_a_cache_that_cannot_be_written(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPDLIGHT_CACHE", str(data / "items_shuffle.json"))
    with pytest.raises(ConfigError, match="OPDLIGHT_CACHE"):
        built_folder(str(data), 1000)


def test_packages_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("regex", "snowballstemmer", "rapidfuzz", "rapidfuzz.fuzz"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delattr(analyzer._local, "stemmer", raising=False)
    analyzer._patterns.cache_clear()
    with pytest.raises(MissingDependencyError, match="regex"):
        analyzer._patterns()
    with pytest.raises(MissingDependencyError, match="snowballstemmer"):
        analyzer._stemmer()
    with pytest.raises(MissingDependencyError, match="rapidfuzz"):
        alike("one text", "that was never compared before")


def test_nouns_are_what_spacy_tags_as_nouns(monkeypatch: pytest.MonkeyPatch) -> None:
    spacy = pytest.importorskip("spacy")
    tags = {"Red": "ADJ", "Shoes": "NOUN", "by": "ADP", "Calvane": "PROPN"}

    def tagger(doc: Any) -> Any:
        for token in doc:
            token.pos_ = tags.get(token.text, "X")
        return doc

    pipeline = spacy.blank("en")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("opdlight.envs.webshop.nouns._model", lambda: lambda text: tagger(pipeline(text)))
    assert nouns_by("auto")("Red Shoes by Calvane, Shoes!") == ["shoes", "calvane", "shoes"]


@pytest.mark.skipif(importlib.util.find_spec("en_core_web_sm") is None, reason="no package index has spaCy's model")
def test_nouns_by_spacys_model() -> None:
    tagged = nouns_by("spacy")
    assert [tagged(title) for title in title_nouns()] == list(title_nouns().values())


def test_nouns_by_spacy_need_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert nouns_by("auto") is nouns_by("words")
    with pytest.raises(MissingDependencyError, match="python -m spacy download en_core_web_sm"):
        nouns_by("spacy")
