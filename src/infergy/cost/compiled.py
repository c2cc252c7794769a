"""Formulas compiled for one server: run once on symbols, which note each operation, with its rates as numbers.

A simulation takes steps one by one, and spent half its time on looking up rates and on terms that are zero for its
server. What is compiled has neither, and comes from the formula that numpy columns are computed by: there is no second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any


class Symbol:
    """A number that is not known yet; what is computed from it becomes a line of Python.

    Attributes:
        name: Of its variable.
        is_late: Whether it hangs on an argument of the inner function.
        is_positive: Whether it is known to be above zero.
        root: What it is the square of, if it is one.
    """

    __slots__ = ("is_late", "is_positive", "name", "notes", "root")
    __array_ufunc__ = None  # numpy's numbers leave the operation to us

    def __init__(self, name: str, notes: Notes, *, is_late: bool = False, is_positive: bool = False) -> None:
        self.name, self.notes, self.is_late, self.is_positive = name, notes, is_late, is_positive
        self.root: Symbol | None = None

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
        return self if _is(other, 1) else self.notes.add("{} * {}", self, other)

    def __rmul__(self, other: Any) -> Any:
        if _is(other, 0):
            return 0.0
        return self if _is(other, 1) else self.notes.add("{} * {}", other, self)

    def __truediv__(self, other: Any) -> Any:
        return self.notes.add("{} / {}", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self.notes.add("{} / {}", other, self)

    def __pow__(self, other: Any) -> Any:
        if _is(other, 0.25) and self.root is not None and self.root.root is not None:
            return self.root.root  # of a roofline whose other side is zero
        return self.notes.add("{} ** {}", self, other)

    def __rpow__(self, other: Any) -> Any:
        return 0.0 if _is(other, 0) else self.notes.add("{} ** {}", other, self)  # exponents are tokens, at least one

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


def least(a: Any, b: Any) -> Any:
    """The smaller of two numbers or symbols."""
    symbol = a if isinstance(a, Symbol) else b
    return symbol.notes.add("{0} if {0} < {1} else {1}", a, b) if isinstance(symbol, Symbol) else min(a, b)


def most(a: Any, b: Any) -> Any:
    """The larger of a number and a symbol."""
    return b.notes.add("{0} if {0} > {1} else {1}", a, b)


class Notes:
    """The lines of a function and of the one inside it; equal operations share a line."""

    def __init__(self) -> None:
        self.lines: tuple[list[str], list[str]] = ([], [])
        self._known: dict[str, Symbol] = {}

    def add(self, form: str, *operands: Any) -> Symbol:
        """The symbol of an operation."""
        text = form.format(*(_text(operand) for operand in operands))
        symbol = self._known.get(text)
        if symbol is None:
            is_late = any(isinstance(operand, Symbol) and operand.is_late for operand in operands)
            symbol = self._known[text] = Symbol(f"t{len(self._known)}", self, is_late=is_late)
            if form == "{} * {}" and operands[0] is operands[1]:
                symbol.root = operands[0]
            self.lines[is_late].append(f"{symbol.name} = {text}")
        return symbol


def compile_formula(
    formula: Callable[..., Sequence[Any]], arguments: Sequence[str], late: Sequence[str] = (), *, positive: bool = False
) -> Callable[..., Any]:
    """A function that returns what `formula` does.

    Args:
        formula: Of numbers, in operators, `Symbol.exp`, `least` and `most`; without branches.
        arguments: Of the function, and first ones of the formula.
        late: If any, the function returns one of these arguments: what does not hang on them is computed once.
        positive: Whether all arguments are above zero.
    """
    notes = Notes()
    symbols = [Symbol(name, notes, is_late=name in late, is_positive=positive) for name in (*arguments, *late)]
    results = f"return {', '.join(_text(result) for result in formula(*symbols))}"
    early, inner = notes.lines
    if late:
        body = [*early, f"def inner({', '.join(late)}):", *(f" {line}" for line in (*inner, results)), "return inner"]
    else:
        body = [*early, results]
    names: dict[str, Any] = {"exp": math.exp, "inf": math.inf}
    exec("\n ".join([f"def outer({', '.join(arguments)}):", *body]), names)
    function: Callable[..., Any] = names["outer"]
    return function


def _text(value: Any) -> str:
    return value.name if isinstance(value, Symbol) else f"({float(value)!r})"


def _is(value: Any, number: float) -> bool:
    return not isinstance(value, Symbol) and bool(value == number)
