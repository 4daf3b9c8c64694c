r"""Numbers as answers: what they are worth, and whether there is still something to compute.

The rule, in one place. Where the right answer is a number, the answer must be one too: copying "3+3" from the question
is not adding. Still to be carried out are

- sums, differences, products and quotients of numbers (`3+3`, `2\cdot 3`, `(2)(3)`, `12/4`, `\frac{12}{4}`), and
- beside a rational right answer powers, roots, factorials and functions (`2^{3}`, `\sqrt{36}`, `3!`, `\gcd(12,18)`),
  signs of signs and absolute values (`-(-3)`, `|-3|`).

Numbers written out are integers, decimals, thousands separators, percentages and units, fractions and mixed numbers
that are no integer (`\frac{1}{2}`, `2/4`), powers of ten and scientific notation (`10^{5}`, `1.5\times 10^{3}`,
`1e5`), and irrational ones in closed form (`2\sqrt{3}`, `1+\sqrt{2}`, `\frac{\pi}{4}`). Of `3+3=6` the last side
counts. Where the right answer is a set, an interval or a formula, or itself such a product (`3\cdot 2^{10}`), nothing
is refused.
"""

import re
from fractions import Fraction

_MANTISSA = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_TIMES = r"(?:\\times|\\cdot|[×·*])"
_EXPONENT = r"(?:\{\s*([+-]?\d{1,3})\s*\}|([+-]?\d{1,3}))"
_DECIMAL = re.compile(
    rf"([+-]?)(?:({_MANTISSA})(?:[eE]([+-]?\d{{1,3}})|\s*{_TIMES}\s*10\s*\^\s*{_EXPONENT})?|10\s*\^\s*{_EXPONENT})"
)
_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}|([+-]?\d+)/(\d+)")

_POWER_OF_TEN = re.compile(rf"(?:(?:{_MANTISSA})\s*{_TIMES}\s*)?(?<![\d.])10\s*\^\s*(?:\{{\s*[+-]?\d+\s*\}}|[+-]?\d+)")
_UNIT = re.compile(r"\\?[%$]|\^\s*\{?\s*\\circ\s*\}?|\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|[^\W\d_]+(?:\^\{?\d\}?)?")
_NUMERIC = re.compile(r"(?:\\(?:sqrt|[dt]?frac|pi|left|right|cdot|times|[,! ])|[\d\s.+\-*/^(){}\[\]])+")
_END = r"[\d)}\]%]\s*"  # of an operand
_BEGIN = r"\s*(?:[+-]?\s*[\d(.]|\\[dt]?frac|\\left)"  # of the next one
_OF_NUMBERS = re.compile(  # both operands are plain numbers, and neither is a factor or a base of something else
    r"(?<![\d.^/*])(?<!cdot)(?<!times)(?<!cdot )(?<!times )\d[\d.,]*\s*"
    rf"(?:[+-]|{_TIMES}|\\div|÷)\s*[+-]?\d[\d.,]*(?![\d.,])"
    r"(?!\s*(?:\\sqrt|\\pi|\\[dt]?frac|[\^(/]))"
)
_OPERATION = re.compile(
    rf"{_END}(?:[+-]|{_TIMES}|\\div|÷|(?<=[\d\s)])[xX](?=[\s\d(])){_BEGIN}"
    rf"|\d\s*\(\s*[+-]?[\d.]|\)\s*[\d(]"  # products without a sign
    rf"|\d\s*/\s*\d+\s*/|frac\s*\{{\s*\\[dt]?frac"  # quotients of quotients
    rf"|[+-]\s*(?:\\left)?\(?\s*[+-]|\||\\[lr]?vert"  # signs of signs, absolute values
    rf"|[\d)]\s*(?:\^|\*\*)\s*\{{?\s*[+-]?[\d(.]|\\sqrt|√|\d\s*!"
    r"|\\(?:log|ln|lg|exp|sin|cos|tan|gcd|lcm|min|max|binom|[lr]floor|[lr]ceil|sum|prod|int|lim|bmod|pmod|mod|operatorname)"
    r"|\b(?:sqrt|gcd|lcm|log|mod)\b"
)
_QUANTITY = re.compile(
    r"(?P<number>.*?\d\.?\}?)(?:\s|~|\\[ ;:,])*"
    r"(?P<unit>\\?%|°|\^\s*\{?\s*\\circ\s*\}?|(?<=[\s~;:,])(?!(?:hundred|thousand|[mbtr]+illion|dozen)s?\b)[^\W\d_]{2,}"
    r"(?:\^\{?\d\}?)?)?",
    re.DOTALL,
)
LONGEST = 64  # characters of a number
LONGEST_EXPRESSION = 1000


def as_decimal(text: str) -> Fraction | None:
    r"""The exact value of an integer or decimal, separators and powers of ten allowed; None for anything else.

    >>> as_decimal("-1,234.50"), as_decimal("1.5e3"), as_decimal(r"10^{5}"), as_decimal("1,2")
    (Fraction(-2469, 2), Fraction(1500, 1), Fraction(100000, 1), None)
    """
    text = text.strip().replace("\u2212", "-")
    match = _DECIMAL.fullmatch(text) if len(text) <= LONGEST else None
    if match is None:
        return None
    sign, mantissa, *exponents = match.groups()
    exponent = next((int(e) for e in exponents if e), 0)
    value = Fraction((mantissa or "1").replace(",", "")) * Fraction(10) ** exponent
    return -value if sign == "-" else value


def as_number(text: str) -> Fraction | None:
    r"""As `as_decimal`, and simple fractions too: `3/4`, `\frac{3}{4}`."""
    text = text.strip().replace("\u2212", "-")
    match = _FRACTION.fullmatch(text) if len(text) <= LONGEST else None
    if match is None:
        return as_decimal(text)
    sign, top, bottom, plain_top, plain_bottom = match.groups()
    numerator, denominator = int(top or plain_top), int(bottom or plain_bottom)
    return None if denominator == 0 else Fraction(-numerator if sign == "-" else numerator, denominator)


def same_quantity(answer: str, target: str) -> bool:
    r"""True if both are numbers, at least one with a unit, and equal: the same unit, or none on one side.

    A percentage is also equal to what it is worth. What is no such pair is False, not yet unequal.

    >>> same_quantity(r"50\%", "50"), same_quantity("0.5", "50%"), same_quantity("5~dollars", "5")
    (True, True, True)
    >>> same_quantity("5 km", "5 cm"), same_quantity("5 million", "5"), same_quantity("5", "5")
    (False, False, False)
    """
    if max(len(answer), len(target)) > LONGEST:
        return False
    said, wanted = (_QUANTITY.fullmatch(t.strip()) for t in (answer, target))
    if said is None or wanted is None or not (said["unit"] or wanted["unit"]):
        return False
    value, right = as_number(said["number"]), as_number(wanted["number"])
    if value is None or right is None:
        return False
    unit, other = ((m["unit"] or "").lstrip("\\") for m in (said, wanted))
    if unit and other:
        return unit == other and value == right
    hundredths = Fraction(1, 100) if "%" in (unit, other) else 1
    return value == right or (value * hundredths == right if unit else value == right * hundredths)


def unfinished(answer: str, target: str) -> bool:
    r"""True if the target is a number and the answer still has to be computed; the rule stands above.

    >>> unfinished("3+3", "6"), unfinished(r"\sqrt{36}", "6"), unfinished(r"2\sqrt{3}", r"\sqrt{12}")
    (True, True, False)
    """
    if len(answer) > LONGEST_EXPRESSION or len(target) > LONGEST_EXPRESSION:
        return False  # nothing so long is graded by its value
    said, wanted = (t.replace("\u2212", "-").rpartition("=")[2].strip(" $") for t in (answer, target))
    rational = as_number(wanted) is not None or as_number(_UNIT.sub("", wanted)) is not None
    if not rational and (not _NUMERIC.fullmatch(wanted) or _OF_NUMBERS.search(wanted)):
        return False
    value = as_number(said)
    if value is not None:
        return value.denominator == 1 and as_decimal(said) is None
    said = _POWER_OF_TEN.sub("1", said)
    return bool(_OF_NUMBERS.search(said) or (rational and _OPERATION.search(said)))
