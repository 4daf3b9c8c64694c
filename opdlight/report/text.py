"""Makes text of models safe to display: invisible characters, and those that would reorder text, become signs."""

import json
import math
import unicodedata

KEPT = "\n\t\u200d"  # \u200d is the zero-width joiner, which emoji need


def visible(text: str) -> str:
    r"""Replace control, format, bidi and surrogate characters by visible signs; keep line breaks and tabs.

    >>> visible("a\0b\u202ec\ud83d")
    'a␀b⟨U+202E⟩c⟨U+D83D⟩'
    """
    return "".join(_sign(c) if c not in KEPT and unicodedata.category(c) in _UNSEEN else c for c in text)


_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def _sign(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def number(value: object) -> float | None:
    """A finite float; −99 for −∞ (a token of probability 0); None for None, NaN and ∞.

    Raises:
        TypeError: for text or a container.
    """
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is not a number")
    if value == -math.inf:
        return -99.0
    return float(value) if math.isfinite(value) else None


def script_json(value: object) -> str:
    r"""One line of JSON that is safe inside a script element: ASCII, without `<`, `>` and `&`.

    >>> script_json("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def shortened(name: str, most: int = 24) -> str:
    """The first `most` characters of a name, with an ellipsis if it is longer.

    >>> shortened("alfworld"), shortened("a" * 30, 5)
    ('alfworld', 'aaaa…')
    """
    return name if len(name) <= most else name[: most - 1] + "…"
