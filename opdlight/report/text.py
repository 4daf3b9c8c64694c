"""Text that a model wrote, made safe to look at: what cannot be seen, or would move what stands around it, is named."""

import json
import math
import unicodedata

KEPT = "\n\t\u200d"  # the zero-width joiner holds emoji together


def visible(text: str) -> str:
    r"""Control, format, bidi and surrogate characters as visible signs; everything else, line breaks too, as it is.

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
    """A finite float; −∞ (a token of probability 0) becomes −99; None for what is no number.

    Raises:
        TypeError: text or a container where a number belongs.
    """
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is not a number")
    if value == -math.inf:
        return -99.0
    return float(value) if math.isfinite(value) else None


def script_json(value: object) -> str:
    r"""One line of JSON that may stand inside a script element: ASCII, without `<`, `>` and `&`.

    >>> script_json("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def shortened(name: str, most: int = 24) -> str:
    """A name that leaves room for the figure beside it.

    >>> shortened("alfworld"), shortened("a" * 30, 5)
    ('alfworld', 'aaaa…')
    """
    return name if len(name) <= most else name[: most - 1] + "…"
