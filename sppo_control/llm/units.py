r"""The unit of an answer: 5 cm, 5\text{ kg}, \$5, 3:05 PM, 60 km/h.

math-verify drops units, so 5 cm would be 5 m. It takes single letters for units as well, so 3t would be 3. Here a unit is
split off first. Two known units are compared: 5 kg is 5,000 g, and is not 5 pounds. A unit that one of the two answers
leaves out is not missed.
"""

# No torch, and nothing of this package, is imported, as in rewards.py.
from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """A known unit: dimension -> power, as sorted pairs, and how many of the base units it is."""

    dimensions: tuple[tuple[str, int], ...]
    factor: Fraction


_TABLE = {
    "length": {"mm": "0.001", "cm": "0.01", "dm": "0.1", "m": "1", "km": "1000", "in": "0.0254", "ft": "0.3048",
               "yd": "0.9144", "mi": "1609.344", "millimeter millimetre": "0.001", "centimeter centimetre": "0.01",
               "meter metre": "1", "kilometer kilometre": "1000", "inch inches": "0.0254", "foot feet": "0.3048",
               "yard": "0.9144", "mile": "1609.344"},
    "mass": {"mg milligram": "0.001", "g gm gram": "1", "kg kilogram": "1000", "lb lbs pound": "453.59237",
             "oz ounce": "28.349523125"},
    "time": {"ms millisecond": "0.001", "s sec second": "1", "min mins minute": "60", "h hr hour": "3600", "day": "86400",
             "week": "604800"},
    "year": {"month": "1/12", "yr year": "1"},
    "gallon": {"gal gallon": "1", "quart": "1/4", "pint": "1/8", "cup": "1/16"},
    "dollar": {"$ dollar": "1", "¢ cent": "0.01"},
    "euro": {"€ euro": "1"},
    "pound": {"£": "1"},
    "yen": {"¥ yen": "1"},
    "rupee": {"₹ rs rupee": "1"},
    "degree": {"deg degree": "1"},
    "radian": {"rad radian": "1"},
    "celsius": {"celsius": "1"},
    "fahrenheit": {"fahrenheit": "1"},
    "acre": {"acre": "1"},
    "before noon": {"am": "1"},
    "after noon": {"pm": "1"},
}  # fmt: skip
_BASES = {
    name: Unit(((dimension, 1),), Fraction(factor))
    for dimension, units in _TABLE.items()
    for names, factor in units.items()
    for name in names.split()
} | {
    name: Unit((("length", power),), Fraction(factor))
    for power, names, factor in ((3, "l liter litre", "1/1000"), (3, "ml milliliter millilitre", "1/1000000"),
                                 (3, "cc", "1/1000000"), (2, "hectare ha", "10000"))
    for name in names.split()
} | {
    name: Unit((("length", 1), ("time", -1)), Fraction(factor) / 3600)
    for names, factor in (("mph", "1609.344"), ("kmh kmph kph", "1000"))
    for name in names.split()
}  # fmt: skip
_SPACED = frozenset(name for name in _BASES if len(name) == 1) | {
    "mg",
    "ml",
    "dm",
    "in",
    "mi",
    "am",
    "pm",
    "ms",
    "ha",
    "gm",
}
"""Without a space before them these are products: 2mg is two times m times g."""
_FUNCTIONS = frozenset(
    (
        "and", "or", "mod", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "lg", "exp", "min", "max", "gcd", "lcm",
        "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "det", "dim", "if", "for", "where", "with", "when", "sqrt",
        "pi", "infinity", "infty", "is", "are", "not", "then", "all", "any",
    )
)  # fmt: skip
"""Words of formulas, which are no units."""
_FONT = r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|rm|mbox)\s*\{[^{}]*\}"
_SPACE = r"(?:\s|~|\\[ ,;:!]|\\q?quad\b|\\thinspace\b)"
_SIGN = r"[€£¥₹¢]|\\?\$"
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)"
_TAIL = re.compile(
    rf"(?P<number>.*?(?:[\d)\]}}!]|\\pi|\S(?={_SPACE}*\\(?:text|mbox))))(?P<space>{_SPACE}*)"
    rf"(?P<unit>(?:{_FONT}|{_SIGN}|[A-Za-z]++\.?)(?:{_POWER}|{_SPACE}|/|\\cdot\b|{_FONT}|{_SIGN}|[A-Za-z]++\.?)*+)",
    re.DOTALL,
)
_ANGLE = re.compile(rf"(?P<number>.*?[\d)\]}}!])\s*\^\s*\{{?\s*\\circ\s*\}}?{_SPACE}*(?P<scale>.*)", re.DOTALL)
_HEAD = re.compile(rf"(?P<minus>[-+]?)(?:US|USD)?(?P<sign>{_SIGN}){_SPACE}*(?P<minus2>-?)(?=[\d.\\])")
LONGEST = 200
"""Characters of an answer in which a unit is looked for."""
_ORDINAL = re.compile(r"(\d+)\s*(?:st|nd|rd|th|\^\s*\{?(?:\\(?:text|mathrm)\s*\{)?(?:st|nd|rd|th)\}?\}?)")
_NUMBER = re.compile(
    r"[-+]?(?:\d[\d.,:]*|\.\d+)(?:\s*/\s*\d+|\\[dt]?frac\{\d+\}\{\d+\}|\s+\d+/\d+)?|-?\\[dt]?frac\{\d+\}\{\d+\}"
)


def split_unit(text: str, loose: bool = False) -> tuple[str, Unit | None]:
    r"""An answer without its unit, and the unit: "5\text{ cm}" is ("5", a hundredth of a metre).

    Args:
        text: an answer in LaTeX.
        loose: whether a single letter is a unit without a space before it (5m), because no variable is expected.

    Returns:
        The text as it is, and None, if it has no unit. The unit is None as well if it is not known, as in 5 apples.
    """
    if len(text) > LONGEST:  # no answer with a unit is so long, and the patterns would need their time
        return text, None
    if match := _ORDINAL.fullmatch(text):
        return match[1], None
    if match := _HEAD.match(text):
        sign = match["sign"].lstrip("\\")
        return match["minus"] + match["minus2"] + text[match.end() :], _BASES[sign]
    if match := _ANGLE.fullmatch(text):
        scale = _plain(match["scale"]).rstrip(".")
        name = {"": "degree", "C": "celsius", "F": "fahrenheit"}.get(scale)
        return (match["number"], _BASES[name]) if name else (text, None)
    if not (match := _TAIL.fullmatch(text)):
        return text, None
    number, spaced, written = match["number"], bool(match["space"]), match["unit"]
    fonts = written.startswith("\\") and re.match(_FONT, written) is not None
    inside = _plain(written)
    if fonts and inside in ("i", "e"):
        return f"{number} {inside}", None
    known = _known(inside)
    if known is not None:
        name = re.split(r"[^A-Za-z]", inside)[0]  # of m/s: m
        unit = spaced or fonts or ":" in number or (loose and len(name) == 1 and _NUMBER.fullmatch(number))
        return (text, None) if name in _SPACED and not unit else (number, known)
    words = inside.split()
    if fonts and written.startswith((r"\text", r"\mbox")) and not _FUNCTIONS & set(words):
        return number, None
    nouns = all(re.fullmatch(r"[A-Za-z]{3,}|of|in|to|an?", word) for word in words) and not _FUNCTIONS & set(words)
    if spaced and nouns and any(len(word) > 2 for word in words) and _NUMBER.fullmatch(number):
        return number, None
    return text, None


def _plain(written: str) -> str:
    r"""\text{ cm}^2 -> cm^2"""
    text = re.sub(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|rm|mbox)\s*\{([^{}]*)\}", r" \1 ", written)
    return " ".join(re.sub(_SPACE, " ", text.replace(r"\$", "$").replace(r"\cdot", " ")).split())


def _known(text: str) -> Unit | None:
    """The product of the known units in it, as in km/h, square feet, cm^2, miles per hour; None if one is not known."""
    text = re.sub(r"\b([ap])\.\s?m\.?", r"\1m", text, flags=re.IGNORECASE)
    tokens = [x for x in re.findall(r"[A-Za-z]+|\^\s*\{?\s*-?\d\s*\}?|\S", text) if x != "."]
    made, last, sign, power = Unit((), Fraction(1)), None, 1, 1
    for index, token in enumerate(tokens):
        word = token if len(token) == 1 and token != "L" else token.casefold()
        squares = {"sq": 2, "square": 2, "squared": 2, "cu": 3, "cubic": 3, "cubed": 3}.get(word)
        if word in ("/", "per") and last is not None and sign > 0:
            sign = -1
        elif squares and index + 1 < len(tokens) and _base(tokens[index + 1]):  # square feet
            power = squares
        elif last is not None and (squares or word.startswith("^")):  # feet squared, ft^2
            made = _times(made, last, sign * ((squares or int(re.sub(r"[^-\d]", "", word))) - 1))
        elif (last := _base(token)) is not None:
            made, power = _times(made, last, sign * power), 1
        else:
            return None
    return made if last is not None and tokens[-1] not in ("/", "per") else None


def _base(token: str) -> Unit | None:
    word = token if len(token) == 1 and token != "L" else token.casefold()
    return _BASES.get(word) or _BASES.get(word.removesuffix("s") if len(word) > 3 else "")


def _times(made: Unit, unit: Unit, n: int) -> Unit:
    dimensions = dict(made.dimensions)
    for name, power in unit.dimensions:
        dimensions[name] = dimensions.get(name, 0) + n * power
    return Unit(tuple(sorted((name, k) for name, k in dimensions.items() if k)), made.factor * unit.factor**n)
