"""How counts, strategies and options are written on the command line: name=value, as often as needed."""

from __future__ import annotations

from collections.abc import Sequence

from augmint.errors import UsageError

__all__ = ["parse_counts", "parse_settings", "parse_strategy"]


def parse_counts(words: Sequence[str], option: str = "--count") -> dict[str, int] | int:
    """label=n pairs as a mapping, or a lone number as itself.

    A label may hold "=" (the last one counts), and may be a number.

    >>> parse_counts(["3=200", "a=b=5"])
    {'3': 200, 'a=b': 5}
    >>> parse_counts(["10"])
    10

    Raises:
        UsageError: neither, both, or a label twice.
    """
    if len(words) == 1 and "=" not in words[0]:
        return _number(words[0], words[0], option)
    counts: dict[str, int] = {}
    for word in words:
        label, equals, number = word.rpartition("=")
        if not equals or not label:
            raise UsageError(
                f"{option} {word!r}: give a label and a number, such as {option} scratch=200, or one number alone for "
                "an unconditional bundle.",
                code="usage.count",
            )
        if label in counts:
            raise UsageError(f"{option} names {label!r} twice: give it once.", code="usage.count")
        counts[label] = _number(number, word, option)
    return counts


def parse_edits(words: Sequence[str], option: str = "--edit") -> dict[str, float]:
    """attribute=amount pairs.

    >>> parse_edits(["slant=+1.5", "stroke=-1"])
    {'slant': 1.5, 'stroke': -1.0}
    """
    edits: dict[str, float] = {}
    for word in words:
        name, equals, number = word.partition("=")
        try:
            amount = float(number.replace("\N{MINUS SIGN}", "-"))
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UsageError(
                f"{option} {word!r}: give an attribute and an amount, such as {option} slant=+1.5.", code="usage.edit"
            )
        if name in edits:
            raise UsageError(f"{option} names {name!r} twice: give it once.", code="usage.edit")
        edits[name] = amount
    return edits


def parse_strategy(words: Sequence[str]) -> str | float | dict[str, int]:
    """A word of imbalanced-learn's ("not-majority" for "not majority"), a share, or label=total pairs.

    >>> parse_strategy(["not-majority"]), parse_strategy(["0.5"]), parse_strategy(["a=9", "b=7"])
    ('not majority', 0.5, {'a': 9, 'b': 7})
    """
    if any("=" in word for word in words):
        totals = parse_counts(words, "--strategy")
        assert isinstance(totals, dict), "a lone number has no ="
        return totals
    if len(words) > 1:
        raise UsageError(
            f"--strategy {words[1]!r}: give one word or share, or as many label=total as you like.",
            code="usage.strategy",
        )
    try:
        return float(words[0])
    except ValueError:
        return words[0].replace("-", " ")


def parse_settings(words: Sequence[str]) -> dict[str, object]:
    """The `--set key=value` of a family's options, values as text.

    >>> parse_settings(["width=32", "head=two_logits"])
    {'width': '32', 'head': 'two_logits'}
    """
    settings: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {word!r}: give KEY=VALUE, such as --set lr=0.0002.", code="usage.set")
        if key in settings:
            raise UsageError(f"--set names {key!r} twice: give it once.", code="usage.set")
        settings[key] = value
    return settings


def _number(text: str, word: str, option: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise UsageError(f"{option} {word!r}: {text!r} is not a whole number, 0 or more.", code="usage.count")
    return int(text)
