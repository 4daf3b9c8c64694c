"""WebShop's search engine: BM25 as Lucene 8 computes it (through Anserini 0.14, which the original calls)."""

import mmap
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from opdlight.envs.webshop.analyzer import tokens

K1, B = np.float32(0.9), np.float32(0.4)
_ARRAYS = ("starts", "documents", "impacts", "keys", "count")


class Hit(NamedTuple):
    """A document that was found."""

    document: int  # its number, in the order in which it was indexed
    score: float  # rounded to 4 decimals, ties lowered in steps of 1e-6


class Terms(Protocol):
    """Numbers of the terms, in the order of their UTF-8."""

    def get(self, term: str, /) -> int | None:
        """The number of a term; None if no document has it."""


class Index:
    """Inverted lists of a collection of texts, D documents with T different terms and P postings.

    Lucene keeps the length of a document in one byte: below 40 exactly, above it rounded down. No library has that
    (bm25s with the same formula ranks 16 of 40 long queries otherwise), so this is our own code.

    Args:
        terms: their numbers, from 0.
        starts: [T+1] where the postings of each term begin.
        documents: [P] ascending within a term.
        impacts: [P] tf / (k1 · (1 − b + b · length / average length)), in Lucene's float32.
        keys: [D] names of the documents; documents of equal score are in their order.
        count: of the documents that have a term.
    """

    def __init__(
        self,
        terms: Terms,
        starts: np.ndarray,
        documents: np.ndarray,
        impacts: np.ndarray,
        keys: np.ndarray,
        count: np.ndarray,
    ) -> None:
        self.terms, self.starts, self.documents, self.impacts = terms, starts, documents, impacts
        self.keys, self.count = keys, count
        self.search = lru_cache(maxsize=512)(self._search)  # a page that is turned searches again

    @classmethod
    def build(cls, texts: Iterable[tuple[str, str]]) -> "Index":
        """The index of (key, text) pairs."""
        terms: dict[str, int] = {}
        keys, lengths = list[str](), array("I")
        numbers, documents, frequencies = array("I"), array("I"), array("I")
        for document, (key, text) in enumerate(texts):
            words = tokens(text)
            keys.append(key)
            lengths.append(len(words))
            for word, frequency in Counter(words).items():
                numbers.append(terms.setdefault(word, len(terms)))
                documents.append(document)
                frequencies.append(frequency)
        ordered = sorted(terms, key=str.encode)
        ranks = np.empty(len(terms), np.uint32)
        ranks[[terms[word] for word in ordered]] = np.arange(len(terms))
        term_of = ranks[np.frombuffer(numbers, np.uint32)]
        order = np.argsort(term_of, kind="stable")
        document_of = np.frombuffer(documents, np.uint32)
        impacts = np.frombuffer(frequencies, np.uint32).astype(np.float32)
        impacts *= _inverse_norms(np.frombuffer(lengths, np.uint32))[document_of]
        starts = np.zeros(len(terms) + 1, np.int64)
        np.cumsum(np.bincount(term_of, minlength=len(terms)), out=starts[1:])
        return cls(
            {word: rank for rank, word in enumerate(ordered)},
            starts,
            document_of[order],
            impacts[order],
            np.array(keys, dtype=np.str_),
            np.array(sum(length > 0 for length in lengths)),
        )

    def save(self, folder: Path) -> None:
        """Write an index that was built into a folder."""
        assert isinstance(self.terms, dict)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        words = [word.encode() for word in self.terms]
        (folder / "terms").write_bytes(b"".join(words))
        np.save(folder / "term_ends.npy", np.cumsum([len(word) for word in words], dtype=np.int64))

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """The index in a folder; it stays on disk, and all processes that read it share the memory."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        return cls(StoredTerms(folder), **arrays)

    def _search(self, query: str, limit: int = 50) -> tuple[Hit, ...]:
        """The best documents with at least one word of the query, best first; a repeated word counts so often.

        Score of a term: qtf · idf · tf / (tf + k1 · (1 − b + b · length / average length)), in Lucene's float32.
        """
        scores = np.zeros(len(self.keys))
        for word, repeats in Counter(tokens(query)).items():
            number = self.terms.get(word)
            if number is None:
                continue
            here = slice(int(self.starts[number]), int(self.starts[number + 1]))
            found = here.stop - here.start
            weight = np.float32(repeats) * np.float32(np.log1p((int(self.count) - found + 0.5) / (found + 0.5)))
            scores[self.documents[here]] += weight - weight / (np.float32(1) + self.impacts[here])
        (found_in,) = np.nonzero(scores)
        values = scores[found_in].astype(np.float32)
        if len(found_in) > limit:  # all that are as good as the last one that is wanted
            least = np.partition(values, len(values) - limit)[len(values) - limit]
            found_in, values = found_in[values >= least], values[values >= least]
        order = np.lexsort((self.keys[found_in], -values))[:limit]
        return tuple(map(Hit, found_in[order].tolist(), _reported(values[order])))


class StoredTerms:
    """Terms in a file, found by bisection: as a dictionary, the million of WebShop's would take each process 150 MB."""

    def __init__(self, folder: Path) -> None:
        self._ends = np.load(folder / "term_ends.npy", mmap_mode="r")
        self._bytes = map_file(folder / "terms")

    def get(self, term: str, /) -> int | None:
        """The number of a term; None if no document has it."""
        wanted = term.encode("utf-8", "replace")
        number = bisect_left(range(len(self._ends)), wanted, key=self._term)
        return number if number < len(self._ends) and self._term(number) == wanted else None

    def _term(self, number: int) -> bytes:
        return self._bytes[int(self._ends[number - 1]) if number else 0 : int(self._ends[number])]


def map_file(path: Path) -> mmap.mmap | bytes:
    """The bytes of a file, in memory that processes share."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def lossy_length(length: int) -> int:
    """A number of tokens as it comes back from Lucene's one byte: 24 + a float with 4 significant bits of the rest.

    >>> [lossy_length(n) for n in (23, 39, 40, 41, 57, 480)]
    [23, 39, 40, 40, 56, 472]
    """
    shift = max((length - 24).bit_length() - 4, 0) if length > 24 else 0
    return length if shift == 0 else 24 + ((length - 24) >> shift << shift)


def _inverse_norms(lengths: np.ndarray) -> np.ndarray:
    """1 / (k1 · (1 − b + b · length / average length)) for documents of `lengths` [D] tokens, the average exact."""
    average = np.float32(int(lengths.sum(dtype=np.int64)) / max(int(np.count_nonzero(lengths)), 1))
    stored = np.array([lossy_length(length) for length in range(int(lengths.max(initial=0)) + 1)], np.float32)
    by_length = np.float32(1) / (K1 * ((np.float32(1) - B) + B * stored / max(average, np.float32(1))))
    return by_length[lengths]


def _reported(scores: np.ndarray) -> list[float]:
    """Anserini's rounding: to 4 decimals, and one that is less than 1e-4 below the one before it is lowered by 1e-6.

    Neighbouring multiples of 1e-4 can be closer than that in float32.
    """
    rounded = (np.floor(scores.astype(np.float64) * 1e4 + 0.5) / 1e4).astype(np.float32)
    reported, ties = [], 0
    for n, score in enumerate(rounded):
        ties = ties + 1 if n and float(rounded[n - 1]) - float(score) < 1e-4 else 0
        reported.append(float(np.float32(float(score) - ties * 1e-6)))
    return reported
