"""The only place that converts or formats units: SI inside, human units on screen."""

from __future__ import annotations

import math
import re

JOULES_PER_KWH = 3.6e6
DAYS_OF_MONTH = 30.4
SECONDS_PER_MILLISECOND = 1e-3
MICROSECONDS_PER_SECOND = 1e6
JOULES_PER_MILLIJOULE = 1e-3
WATTS_PER_MILLIWATT = 1e-3
HERTZ_PER_MEGAHERTZ = 1e6


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What controls a terminal, turns the direction of text, or is half a character; tabs and ends of lines are none."""


def printable(text: str) -> str:
    r"""`text` as it is safe to show, from any source: what would control a terminal is escaped, as ``\x1b``."""
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


_SECRETS = re.compile(
    r"""(?P<begin>://[^\s/?\#@:]*:)(?!\d+(?:[/?\s]|$))\S*(?P<end>@) | (?P<user>://)[^\s/?\#@]+(?P<at>@)
    | (?P<key>(?:^|[?&;,\s"'])(?:x-amz-)?(?:aws[_-]|azure[_-])?(?:signature|credential|security-token|sig|token|key
    |(?:access|auth|api|account|session|secret|storage|shared)[_-]?(?:access[_-]?)?(?:token|key|signature)
    |secret|password|passwd|pwd)=)[^&\s;\#'",]+""",
    re.IGNORECASE | re.VERBOSE,
)
"""Of a URL all before its host, and values of parameters of it, or of a data source, that are secret."""


def without_secrets(text: str) -> str:
    """`text` without the passwords and keys of its URLs, each shown as ``***``."""

    def hide(found: re.Match[str]) -> str:
        parts = found.groupdict(default="")
        return f"{parts['begin']}{parts['user']}{parts['key']}***{parts['end']}{parts['at']}"

    return _SECRETS.sub(hide, text) if "=" in text or "://" in text else text


def format_si(value: float, unit: str, digits: int = 3) -> str:
    """`value` with an SI prefix from p to P: ``format_si(1.23e6, "J")`` is ``1.23 MJ``."""
    divisor, scaled_unit = scale_of(value, unit, digits)
    return f"{format_number(value / divisor, digits)} {scaled_unit}"


def scale_of(value: float, unit: str, digits: int = 3) -> tuple[float, str]:
    """What `value` is divided by to be shown with an SI prefix, and the unit with it."""
    prefixes = ["p", "n", "µ", "m", "", "k", "M", "G", "T", "P"]
    step = 0
    while float(f"{abs(value) / 1000.0**step:.{digits}g}") >= 1000 and step < 5:
        step += 1
    while 0 < float(f"{abs(value) / 1000.0**step:.{digits}g}") < 1 and step > -4:
        step -= 1
    return 1000.0**step, f"{prefixes[step + 4]}{unit}"


def latency_scale(seconds: float) -> tuple[float, str]:
    """The same for a latency: minutes from ten on, and hours."""
    if seconds < 600:
        return scale_of(seconds, "s")
    return (60.0, "min") if seconds < 3600 else (3600.0, "h")


def format_interval(value: float, low: float, high: float, scale: tuple[float, str]) -> str:
    """`value` and its interval in one unit: ``1.94 MJ (1.86 .. 2.02)``."""
    divisor, unit = scale
    shown, *ends = (format_number(number / divisor) for number in (value, low, high))
    return f"{shown} {unit} ({' .. '.join(ends)})"


def format_number(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant digits, with thousands separated and no exponent."""
    rounded = float(f"{value:.{digits}g}")
    if abs(rounded) >= 10 ** (digits - 1):
        return f"{rounded:,.0f}"
    if rounded == 0:
        return "0"
    decimals = 0
    while abs(rounded) * 10**decimals < 10 ** (digits - 1) and decimals < 12:
        decimals += 1
    return f"{rounded:,.{decimals}f}"


def format_duration(seconds: float) -> str:
    """Seconds as ``4.2 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 60:
        return f"{format_number(seconds, 2)} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min"


def format_latency(seconds: float) -> str:
    """Seconds with an SI prefix below a minute, as a duration from there on: ``7.50 ms``, ``2 h 05 min``."""
    return format_si(seconds, "s") if seconds < 60 else format_duration(seconds)


_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds of ``50ms``, ``0.05s``, ``5m``, ``1h``, or of a plain number.

    Raises:
        ValueError: It is none of these.
    """
    found = re.fullmatch(r"([\d.]+)\s*(ms|s|m|min|h)?", text.strip())
    seconds = math.inf if found is None else float(found[1]) * _SECONDS[found[2] or "s"]
    if not math.isfinite(seconds):
        raise ValueError(text)
    return seconds


def parse_count(text: str | None) -> int | None:
    """A whole number of at most 18 digits; None of all else."""
    return int(text) if text is not None and text.isdecimal() and len(text) <= 18 else None


def format_bytes(count: float) -> str:
    """Bytes in binary units: ``15.0 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{format_number(count)} {unit}"
        count /= 1024
    return f"{format_number(count)} TiB"


def count_of(number: int, noun: str) -> str:
    """A count with its noun: ``1 request``, ``2,000 requests``, ``2 entries``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun.removesuffix('y')}ies" if noun.endswith("ry") else f"{number:,} {noun}s"


def format_percent(fraction: float, *, signed: bool = False) -> str:
    """A fraction as a percentage with one decimal: ``format_percent(0.3758)`` is ``37.6 %``."""
    return f"{fraction * 100:{'+' if signed else ''}.1f} %"
