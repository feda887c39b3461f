"""Numbers and names for people: three figures and a unit, unknown as a dash, text on one line."""

from __future__ import annotations

import math
import unicodedata

UNKNOWN = "–"
_NAME = 200  # longer names would fill the file

#: Characters that would move the cursor or turn the reading direction of what follows.
_UNSAFE = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0x2028, 0x2029}


def finite(value: float | None) -> float | None:
    """The number, or None where it is unknown or not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def ratio(part: float | None, whole: float | None) -> float | None:
    """``part / whole``; None where either is unknown or the whole is 0."""
    part, whole = finite(part), finite(whole)
    return None if part is None or not whole else finite(part / whole)


def figures(value: float) -> str:
    """Three significant figures without an exponent: ``0.54``, ``9.8``, ``553``, ``12,300``."""
    if value == 0:
        return "0"
    if not 1e-12 <= abs(value) < 1e15:
        return f"{value:.1e}"
    magnitude = math.floor(math.log10(abs(value)))
    rounded = round(value, 2 - magnitude)
    return f"{rounded:,.{max(0, 2 - magnitude)}f}" if magnitude < 3 else f"{rounded:,.0f}"


def seconds(value: float | None) -> str:
    """``2.1 µs``, ``55.2 ms``, ``4.21 s``, ``3 min 20 s``."""
    value = finite(value)
    if value is None:
        return UNKNOWN
    if 120 <= abs(value) < 1e10:
        hours, rest = divmod(round(abs(value)), 3600)
        sign = "-" if value < 0 else ""
        if hours:
            return f"{sign}{hours:,} h {rest // 60} min"
        return f"{sign}{rest // 60} min {rest % 60} s"
    return _scaled(value, "s", {1.0: "", 1e-3: "m", 1e-6: "µ", 1e-9: "n"}, smallest="0 s")


def size(value: float | None) -> str:
    """Bytes in decimal units: ``41 B``, ``9.86 MB``, ``538 MB``."""
    return _large(value, "B")


def bandwidth(value: float | None) -> str:
    """Bytes per second: ``9.80 GB/s``."""
    return _large(value, "B/s")


def flops(value: float | None) -> str:
    """Floating-point operations: ``271 MFLOP``."""
    return _large(value, "FLOP")


def flop_rate(value: float | None) -> str:
    """Floating-point operations per second: ``79.8 GFLOP/s``."""
    return _large(value, "FLOP/s")


def energy(value: float | None) -> str:
    """Joules: ``36.2 J``, ``1.20 kJ``."""
    value = finite(value)
    if value is None:
        return UNKNOWN
    steps = {1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ"}
    return _scaled(value, "J", steps, smallest="0 J")


def power(value: float | None) -> str:
    """Watts: ``352 W``."""
    return _large(value, "W")


def frequency(value: float | None) -> str:
    """Hertz: ``1.98 GHz``."""
    return _large(value, "Hz")


def intensity(value: float | None) -> str:
    """FLOP per byte."""
    value = finite(value)
    if value is None:
        return UNKNOWN
    return f"{value:.1e}" if value and not 1e-3 <= abs(value) < 1e6 else figures(value)


def interval(low: float | None, high: float | None) -> str:
    """Two ends in seconds: ``7.90 ms – 12.7 ms``; unknown where one is."""
    if finite(low) is None or finite(high) is None:
        return UNKNOWN
    return f"{seconds(low)} – {seconds(high)}"


def percent(value: float | None) -> str:
    """A share: ``92%``, ``0.4%``."""
    value = finite(value)
    if value is None:
        return UNKNOWN
    points = 100 * value
    if points and abs(points) < 0.1:
        return "<0.1%"
    if abs(points) >= 1e6:
        return f"{points:.1e}%"
    return f"{points:.1f}%" if 0 < abs(points) < 1 else f"{points:,.0f}%"


def dollars(value: float | None) -> str:
    """Money: ``$0.71``, ``$0.000099``."""
    value = finite(value)
    if value is None:
        return UNKNOWN
    if abs(value) >= 1e15 or 0 < abs(value) < 1e-9:
        return f"${value:.1e}"
    return f"${value:,.2f}" if value == 0 or abs(value) >= 0.1 else f"${float(f'{value:.2g}'):f}".rstrip("0")


def count(value: float | None) -> str:
    """A whole number with its thousands apart."""
    value = finite(value)
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.1e}"


def _large(value: float | None, unit: str) -> str:
    value = finite(value)
    if value is None:
        return UNKNOWN
    steps = {1e18: "E", 1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1.0: ""}
    return _scaled(value, unit, steps, smallest=f"0 {unit}")


def _scaled(value: float, unit: str, steps: dict[float, str], smallest: str) -> str:
    if value == 0:
        return smallest
    # 999.9 ms must become 1.00 s, so the rounded number picks its unit.
    rounded = float(f"{value:.3g}")
    factor = next((f for f in steps if abs(rounded) >= f), min(steps))
    scaled = rounded / factor
    if abs(scaled) >= 1e4 or abs(scaled) < 1e-2:
        return f"{scaled:.1e} {steps[factor]}{unit}"
    if factor == 1 and unit == "B":
        return f"{scaled:.0f} B"
    # 9.80 and not 9.8: numbers of a column line up.
    text = f"{scaled:.{max(0, 2 - math.floor(math.log10(abs(scaled))))}f}"
    return f"{text} {steps[factor]}{unit}"


def clean(text: object) -> str:
    """One line of any text: control characters and changes of direction become a visible mark."""
    return clean_line(" ".join(str(text).split()))


def clean_line(line: str) -> str:
    """The same with its spaces as they are."""
    return "".join(
        "�" if ord(char) in _UNSAFE or (char != "\t" and unicodedata.category(char) in ("Cc", "Cs")) else char
        for char in line
    )


def label(text: object) -> str:
    """Give a name as it is stored: on one line, cut where nobody would read on."""
    line = str(text)
    return clean(line if len(line) <= _NAME else line[: _NAME - 1] + "…")


def maybe(text: object) -> str | None:
    """Give a name, or None where there is none."""
    return None if text is None else label(text)


def clip(text: object, limit: int) -> str:
    """At most ``limit`` columns of a terminal, the end cut off with an ellipsis.

    Examples
    --------
    >>> clip("a long name", 7)
    'a long…'
    """
    # Nothing past a few times the limit can be shown: 10,000 characters are not looked at one by one.
    line = clean(str(text)[: 8 * limit + 64])
    if width(line) <= limit:
        return line
    kept, used = [], 0
    for char in line:
        used += _columns(char)
        if used > limit - 1:
            break
        kept.append(char)
    return "".join(kept).rstrip() + "…"


def width(text: str) -> int:
    """Columns that a text takes in a terminal: wide characters two, combining ones none."""
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if char < "\u0300":
        return 1
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
