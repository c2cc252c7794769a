"""Formulas compiled for one server: run once on symbols, which note each operation, with its rates as numbers.

A simulation takes steps one by one, and spent half its time on looking up rates and on terms that are zero for its
server. What is compiled has neither, and comes from the formula that numpy columns are computed by: there is no second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

PRODUCT, TRUTHS = "{} * {}", ("{} > {}", "{} == {}", "{} & {}")


class Symbol:
    """A number that is not known yet; what is computed from it is Python text. Zeros and ones leave no trace.

    Attributes:
        name: Unique in its notes.
        form: Template of the text, of the operands; empty for an argument.
        is_late: Whether it depends on an argument of the inner function.
        is_positive: Whether it is known to be above zero.
    """

    __slots__ = ("form", "is_late", "is_positive", "name", "notes", "operands")
    __array_ufunc__ = None  # numpy's numbers leave the operation to us

    def __init__(self, notes: Notes, name: str, form: str = "", *operands: Any) -> None:
        self.notes, self.name, self.form, self.operands = notes, name, form, operands
        self.is_late: bool = any(isinstance(operand, Symbol) and operand.is_late for operand in operands)
        self.is_positive = False

    def __add__(self, other: Any) -> Any:
        return self if _is(other, 0) else self.notes.add("{} + {}", self, other)

    def __radd__(self, other: Any) -> Any:
        return self if _is(other, 0) else self.notes.add("{} + {}", other, self)

    def __sub__(self, other: Any) -> Any:
        return self if _is(other, 0) else self.notes.add("{} - {}", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self.notes.add("{} - {}", other, self)

    def __mul__(self, other: Any) -> Any:
        if _is(other, 0):
            return 0.0
        if _is(other, 1):
            return self
        if self.form in TRUTHS:
            return self.notes.add("{1} if {0} else 0.0", self, other)
        return other * self if _is_truth(other) else self.notes.add(PRODUCT, self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self.notes.add("{} / {}", self, other)

    def __pow__(self, other: Any) -> Any:
        square = self.operands[0] if self.is_square and _is(other, 0.25) else None
        if square is not None and square.is_square:
            return square.operands[0]  # one side of a roofline whose other side is zero
        return self.notes.add("{} ** {}", self, other)

    def __rpow__(self, other: Any) -> Any:
        return 0.0 if _is(other, 0) else self.notes.add("{} ** {}", other, self)  # exponents are tokens, one at least

    def __neg__(self) -> Any:
        return self.notes.add("-{}", self)

    def __gt__(self, other: Any) -> Any:
        return True if self.is_positive and _is(other, 0) else self.notes.add("{} > {}", self, other)

    def __eq__(self, other: object) -> Any:
        return False if self.is_positive and _is(other, 0) else self.notes.add("{} == {}", self, other)

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: Any) -> Any:
        if isinstance(other, Symbol):
            return self.notes.add("{} & {}", self, other)
        return self if other else False

    __rand__ = __and__

    def exp(self) -> Any:
        """Its exponential."""
        return self.notes.add("exp({})", self)

    @property
    def is_square(self) -> bool:
        """Whether it is a symbol times itself."""
        return self.form == PRODUCT and self.operands[0] is self.operands[1]


def least(a: Any, b: Any) -> Any:
    """The smaller of two numbers or symbols."""
    symbol = a if isinstance(a, Symbol) else b
    return symbol.notes.add("{0} if {0} < {1} else {1}", a, b) if isinstance(symbol, Symbol) else min(a, b)


def most(a: Any, b: Any) -> Any:
    """The larger of a number and a symbol."""
    return b.notes.add("{0} if {0} > {1} else {1}", a, b)


class Notes:
    """All symbols of a formula: equal operations are one symbol."""

    def __init__(self) -> None:
        self._known: dict[str, Symbol] = {}

    def add(self, form: str, *operands: Any) -> Symbol:
        """The symbol of an operation."""
        key = form.format(*(operand.name if isinstance(operand, Symbol) else repr(operand) for operand in operands))
        symbol = self._known.get(key)
        if symbol is None:
            symbol = self._known[key] = Symbol(self, f"t{len(self._known)}", form, *operands)
        return symbol


class _Text:
    """Python that computes symbols: lines of a function and of the one inside it, for what is used more than once."""

    def __init__(self, results: Sequence[Any]) -> None:
        self.lines: tuple[list[str], list[str]] = ([], [])
        self._uses: Counter[str] = Counter()
        self._written: set[str] = set()
        for result in results:
            self._count(result, 1)

    def _count(self, value: Any, uses: int) -> None:
        if isinstance(value, Symbol):
            is_first = value.name not in self._uses
            self._uses[value.name] += uses
            for k, operand in enumerate(value.operands if is_first else ()):
                self._count(operand, max(1, value.form.count(f"{{{k}}}")))

    def of(self, value: Any, *, is_late: bool) -> str:
        """An expression of a value inside the inner function, or outside it."""
        if not isinstance(value, Symbol):
            return repr(value) if type(value) is int else repr(float(value))
        if not value.form or value.name in self._written:
            return value.name
        text = value.form.format(*(self.of(operand, is_late=value.is_late) for operand in value.operands))
        if self._uses[value.name] == 1 and value.is_late == is_late:
            return f"({text})"
        self.lines[value.is_late].append(f"{value.name} = {text}")
        self._written.add(value.name)
        return value.name


def compile_formula(
    formula: Callable[..., Sequence[Any]], arguments: Sequence[str], late: Sequence[str] = (), *, positive: bool = False
) -> Callable[..., Any]:
    """A function that returns what `formula` does.

    Args:
        formula: Of numbers, in operators, `Symbol.exp`, `least` and `most`; without branches.
        arguments: Of the function, and first ones of the formula.
        late: If any, the function returns one of these arguments: what does not depend on them is computed once.
        positive: Whether all arguments are above zero.
    """
    notes = Notes()
    symbols = [Symbol(notes, name) for name in (*arguments, *late)]
    for symbol in symbols:
        symbol.is_late, symbol.is_positive = symbol.name in late, positive
    results = formula(*symbols)
    text = _Text(results)
    last = f"return {', '.join(text.of(result, is_late=bool(late)) for result in results)}"
    early, inner = text.lines
    if late:
        body = [*early, f"def inner({', '.join(late)}):", *(f" {line}" for line in (*inner, last)), "return inner"]
    else:
        body = [*early, last]
    names: dict[str, Any] = {"exp": math.exp, "inf": math.inf}
    exec("\n ".join([f"def outer({', '.join(arguments)}):", *body]), names)
    function: Callable[..., Any] = names["outer"]
    return function


def _is(value: Any, number: float) -> bool:
    return not isinstance(value, Symbol) and bool(value == number)


def _is_truth(value: Any) -> bool:
    return isinstance(value, Symbol) and value.form in TRUTHS
