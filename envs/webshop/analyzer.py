"""Words of a text as Lucene's English analyzer makes them: the search engine of WebShop indexes and looks up these."""

import threading
from functools import lru_cache
from typing import Any

from opdlight.errors import MissingDependencyError

_STOP = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
STOP_WORDS = frozenset(_STOP.split())
_POSSESSIVE = ("'s", "\u2019s", "\uff07s")
_local = threading.local()  # a stemmer keeps the word that it works on


@lru_cache(maxsize=1)
def _patterns() -> tuple[Any, Any]:
    """Unicode's word boundaries, and a vowel followed by a consonant (Porter's measure is above 0)."""
    try:
        import regex
    except ImportError as error:
        raise MissingDependencyError("WebShop's search needs the package regex: pip install regex") from error
    word, measure = r"\b(?=\w).+?\b", r"([aeiou]|(?<=[^aeiou])y)[^aeiou]"
    return regex.compile(word, regex.WORD | regex.DOTALL), regex.compile(measure)


def tokens(text: str) -> list[str]:
    """The terms of a text, in order with repeats.

    Unicode's word boundaries (UAX 29), possessive 's cut off, lower case, without English stop words, stemmed.

    >>> tokens("Women's Running-Shoes, size 8.5 for the analogy")
    ['women', 'run', 'shoe', 'size', '8.5', 'analog']
    """
    return [term for word in _patterns()[0].findall(text.lower()) if (term := _term(word))]


@lru_cache(maxsize=1 << 18)
def _term(word: str) -> str:
    """The term of a lower-case word; empty for a stop word."""
    word = word[:-2] if word.endswith(_POSSESSIVE) else word
    return "" if word in STOP_WORDS else stem(word)


def stem(word: str) -> str:
    """Porter's first stemmer, with the two departures of his own program, which Lucene has and Snowball has not.

    They are `-bli` → `-ble` (Snowball: `-abli` only) and `-logi` → `-log`.

    >>> stem("flexibly"), stem("technologies"), stem("geology")
    ('flexibl', 'technolog', 'geologi')
    """
    stemmer = _stemmer()
    stemmed = stemmer.stemWord(word)
    measure_above_0 = _patterns()[1].search
    if stemmed.endswith("logi") and measure_above_0(stemmed[:-4]):
        return stemmed[:-1]
    if stemmed.endswith("bli") and measure_above_0(stemmed[:-3]):
        return stemmer.stemWord(f"{stemmed[:-1]}e")
    return stemmed


def _stemmer() -> Any:
    try:
        return _local.stemmer
    except AttributeError:
        try:
            import snowballstemmer
        except ImportError as error:
            raise MissingDependencyError(
                "WebShop's search needs the package snowballstemmer: pip install snowballstemmer"
            ) from error
        _local.stemmer = snowballstemmer.stemmer("porter")
        return _local.stemmer
