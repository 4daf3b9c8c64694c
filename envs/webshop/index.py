"""WebShop's search engine: BM25 as Lucene 8 computes it (through Anserini 0.14, which the original calls)."""

from array import array
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from opdlight.envs.webshop.analyzer import tokens

K1, B = np.float32(0.9), np.float32(0.4)
_ARRAYS = ("starts", "documents", "frequencies", "lengths")


class Hit(NamedTuple):
    """A document that was found."""

    document: int  # its number, in the order in which it was indexed
    score: float  # rounded to 4 decimals, ties lowered in steps of 1e-6


class Index:
    """Inverted lists of a collection of texts, D documents with T different terms and P postings.

    Lucene keeps the length of a document in one byte: below 40 exactly, above it rounded down. No library has that
    (bm25s with the same formula ranks 16 of 40 long queries otherwise), so this is our own code.

    Args:
        terms: term → its number.
        starts: [T+1] where the postings of each term begin.
        documents: [P] ascending within a term.
        frequencies: [P] how often the term is in the document.
        lengths: [D] tokens of each document.
        keys: [D] names of the documents; documents of equal score are in their order.
    """

    def __init__(
        self,
        terms: dict[str, int],
        starts: np.ndarray,
        documents: np.ndarray,
        frequencies: np.ndarray,
        lengths: np.ndarray,
        keys: np.ndarray,
    ) -> None:
        self.terms, self.starts, self.documents, self.frequencies = terms, starts, documents, frequencies
        self.lengths, self.keys = lengths, keys
        count = max(int(np.count_nonzero(lengths)), 1)
        self._count = count
        average = np.float32(int(lengths.sum(dtype=np.int64)) / count)
        stored = np.array([lossy_length(length) for length in range(int(lengths.max(initial=0)) + 1)], np.float32)
        self._inverse = np.float32(1) / (K1 * ((np.float32(1) - B) + B * stored / average))  # by exact length
        self.search = lru_cache(maxsize=4096)(self._search)  # a page that is turned searches again

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
        term_of = np.frombuffer(numbers, np.uint32)
        order = np.argsort(term_of, kind="stable")
        starts = np.zeros(len(terms) + 1, np.int64)
        np.cumsum(np.bincount(term_of, minlength=len(terms)), out=starts[1:])
        return cls(
            terms,
            starts,
            np.frombuffer(documents, np.uint32)[order],
            np.frombuffer(frequencies, np.uint32)[order],
            np.frombuffer(lengths, np.uint32),
            np.array(keys, dtype=np.str_),
        )

    def save(self, folder: Path) -> None:
        """Write the index into a folder."""
        for name in (*_ARRAYS, "keys"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        (folder / "terms.txt").write_text("\n".join(self.terms), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """The index in a folder; its arrays stay on disk, and all processes that read them share the memory."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*_ARRAYS, "keys")}
        words = (folder / "terms.txt").read_text(encoding="utf-8").split("\n")
        return cls({word: number for number, word in enumerate(words) if word}, **arrays)

    def _search(self, query: str, limit: int = 50) -> tuple[Hit, ...]:
        """The best documents with at least one word of the query, best first; a repeated word counts so often.

        Score of a term: qtf · idf · tf / (tf + k1 · (1 − b + b · length / average length)), in Lucene's float32.
        """
        scores = np.zeros(len(self.lengths))
        for word, repeats in Counter(tokens(query)).items():
            number = self.terms.get(word)
            if number is None:
                continue
            here = slice(int(self.starts[number]), int(self.starts[number + 1]))
            documents = self.documents[here]
            found = len(documents)
            idf = np.float32(np.log1p((self._count - found + 0.5) / (found + 0.5)))
            weight = np.float32(repeats) * idf
            inverse = self._inverse[self.lengths[documents]]
            one = np.float32(1)
            scores[documents] += weight - weight / (one + self.frequencies[here].astype(np.float32) * inverse)
        (found_in,) = np.nonzero(scores)
        values = scores[found_in].astype(np.float32)
        if len(found_in) > limit:  # all that are as good as the last one that is wanted
            least = np.partition(values, len(values) - limit)[len(values) - limit]
            found_in, values = found_in[values >= least], values[values >= least]
        order = np.lexsort((self.keys[found_in], -values))[:limit]
        return tuple(map(Hit, found_in[order].tolist(), _reported(values[order])))


def lossy_length(length: int) -> int:
    """A number of tokens as it comes back from Lucene's one byte: 24 + a float with 4 significant bits of the rest.

    >>> [lossy_length(n) for n in (23, 39, 40, 41, 57, 480)]
    [23, 39, 40, 40, 56, 472]
    """
    shift = max((length - 24).bit_length() - 4, 0) if length > 24 else 0
    return length if shift == 0 else 24 + ((length - 24) >> shift << shift)


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
