"""Why a fleet is what it is, in sentences with numbers."""

from __future__ import annotations

from collections.abc import Mapping

from gimlet_lab.advisor.build import Question
from gimlet_lab.advisor.choice import Choice, with_bounds
from gimlet_lab.advisor.instance import Instance
from gimlet_lab.advisor.judge import judge
from gimlet_lab.advisor.pairs import by_pair, kind, name_of
from gimlet_lab.advisor.words import interval, quantity

#: Pairs that are named beside the one that is taken.
MOST_PAIRS = 5


def explain_fleet(instance: Instance, question: Question, choice: Choice) -> list[str]:
    """What to rent, what each stage gets, what moves, and what other kinds would cost."""
    assert question.rate_per_s is not None
    lines = [_rent(instance, question, choice)]
    for prefill, decode in question.pairs:
        lines.append(_served(question, choice, prefill, decode))
    in_roles = {name for pair in question.pairs for name in pair}
    for name, key in choice.assignment.items():
        if name not in in_roles:
            share = instance.units[name].options[key].load
            each = interval(question.estimates[name][key])
            lines.append(f"{name} runs on {key}: {each} a call, {share:.2g} of a device kept busy.")
    for pair in question.pairs:
        lines += _pairs(instance, choice, pair)
    return lines


def _rent(instance: Instance, question: Question, choice: Choice) -> str:
    count: dict[str, int] = {}
    for pool, copies in choice.verdict.count.items():
        if copies and not (instance.machines[pool].host and not instance.machines[pool].usd_per_hour):
            count[kind(pool)] = count.get(kind(pool), 0) + copies
    what = " and ".join(f"{copies} × {name}" for name, copies in count.items()) or "nothing"
    per_hour = choice.verdict.usd_per_hour or 0.0
    low, high = (
        judge(with_bounds(instance, question, end), choice.assignment).usd_per_hour or 0.0
        for end in ("low", "high")
    )
    assert question.rate_per_s is not None
    a_thousand = per_hour / 3.6 / question.rate_per_s
    return (
        f"Rent {what}: ${per_hour:.3g} an hour (${low:.3g} to ${high:.3g} by the ends of the estimates) for "
        f"{question.rate_per_s:g} requests a second, ${a_thousand:.3g} a thousand."
    )


def _served(question: Question, choice: Choice, prefill: str, decode: str) -> str:
    first, later = choice.assignment[prefill], choice.assignment[decode]
    ttft, tpot = question.estimates[prefill][first], question.estimates[decode][later]
    count = choice.verdict.count
    if first == later:
        where = f"{prefill} and {decode} share {count[first]} × {kind(first)} ({_engine(first)})"
    else:
        pools = [key.partition("@")[0] for key in (first, later)]
        where = ", ".join(
            f"{role} on {count[pool]} × {kind(key)} ({_engine(key)})"
            for role, pool, key in zip((prefill, decode), pools, (first, later), strict=True)
        )
    return f"{where}: first token {interval(ttft)}, then {interval(tpot)} a token."


def _engine(key: str) -> str:
    """``2 share each layer, batch 16``."""
    variant = key.rpartition("@")[2] if "@" in key else key[key.rindex("-tp") + 1 :]
    tp, _, batch = variant.removeprefix("tp").partition("-b")
    return f"batch {batch}" if tp == "1" else f"{tp} share each layer, batch {batch}"


def _pairs(instance: Instance, choice: Choice, pair: tuple[str, str]) -> list[str]:
    ways = by_pair(instance, pair, choice.assignment)
    mine = choice.verdict.objective or 0.0
    able = sorted(
        (way.verdict.objective, way.name)
        for way in ways.values()
        if way.feasible and way.verdict is not None and way.verdict.objective is not None
    )
    taken = name_of(choice.assignment, pair)
    others = [
        f"{name} {quantity(value, instance.objective)} ({_more(value, mine)})"
        for value, name in able
        if name != taken
    ]
    unable = [way for way in ways.values() if not way.feasible]
    lines = []
    if others:
        shown = ", ".join(others[:MOST_PAIRS])
        more = f" and {len(others) - MOST_PAIRS} more" if len(others) > MOST_PAIRS else ""
        lines.append(f"In place of {taken} (prefill::decode): {shown}{more}.")
    if unable:
        names = ", ".join(way.name for way in unable[:MOST_PAIRS])
        lines.append(f"Not allowed: {names} ({unable[0].name}: {unable[0].why_not}).")
    return lines


def _more(value: float, mine: float) -> str:
    return "as much" if value == mine else f"{value / mine - 1:+.0%}" if mine else "more"


def price_flips(instance: Instance, choice: Choice, pair: tuple[str, str]) -> list[str]:
    """At which price of a kind another pair would be taken; exact, since cost is linear in prices."""
    ways = by_pair(instance, pair, choice.assignment)
    mine = _bill(instance, choice.verdict.count)
    total = sum(copies * price for copies, price in mine.values())
    taken = name_of(choice.assignment, pair)
    flips: dict[str, tuple[float, float, str]] = {}
    for way in ways.values():
        if not way.feasible or way.verdict is None or way.name == taken:
            continue
        theirs = _bill(instance, way.verdict.count)
        more = sum(copies * price for copies, price in theirs.values()) - total
        for name in {**mine, **theirs}:
            price = (mine.get(name) or theirs[name])[1]
            gain = mine.get(name, (0, 0.0))[0] - theirs.get(name, (0, 0.0))[0]
            at = price + more / gain if gain else None
            if at is not None and at > 0 and at != price:
                known = flips.get(name)
                if known is None or abs(at - price) < abs(known[0] - price):
                    flips[name] = (at, price, way.name)
    return [
        f"With {name} at ${at:.3g} an hour (now ${price:.3g}) or "
        f"{'more' if at > price else 'less'}, {other} is taken."
        for name, (at, price, other) in sorted(flips.items(), key=lambda f: abs(f[1][0] / f[1][1] - 1))[:3]
    ]


def _bill(instance: Instance, count: Mapping[str, int]) -> dict[str, tuple[int, float]]:
    """Copies and price by kind."""
    found: dict[str, tuple[int, float]] = {}
    for pool, copies in count.items():
        price = instance.machines[pool].usd_per_hour
        if copies and price:
            found[kind(pool)] = (found.get(kind(pool), (0, 0.0))[0] + copies, price)
    return found
