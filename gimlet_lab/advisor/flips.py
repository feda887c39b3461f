"""At which price, link speed, batch, context length or rate another plan would be taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from gimlet_lab.advisor.baselines import Candidate
from gimlet_lab.advisor.build import Question
from gimlet_lab.advisor.choice import Choice
from gimlet_lab.advisor.instance import Instance
from gimlet_lab.advisor.judge import judge
from gimlet_lab.advisor.pairs import cheapest, name_of
from gimlet_lab.advisor.problem import parse

#: Seconds for all flip points of a plan, and their share of what the solver has; those not found by then are
#: not said.
BUDGET_S, SHARE = 4.0, 0.15

#: How far from its value a figure is moved, and how finely its flip is told apart.
FARTHEST, FINE = 16.0, 1.1

#: Another plan must be this much better than the one in hand to be a change of mind.
BETTER = 1e-6

#: The same question at another rate or context length.
Again = Callable[..., Question]

Clock = Callable[[], float]


def flip(
    choice_at: Callable[[float], str | None], now: str, go_on: Callable[[], bool]
) -> list[tuple[float, str]]:
    """The nearest factors, above and below 1, at which a choice changes, by doubling and bisection.

    Parameters
    ----------
    choice_at : callable
        Factor to the choice there; None where nothing is allowed.
    now : str
        The choice at 1.

    Examples
    --------
    >>> [(round(f, 1), c) for f, c in flip(lambda f: "a" if f < 3 else "b", "a", lambda: True)]
    [(3.1, 'b')]
    """
    found = []
    for step in (2.0, 0.5):
        inside, outside, there = 1.0, step, now
        while go_on() and there == now and 1 / FARTHEST <= outside <= FARTHEST:
            there = choice_at(outside) or "nothing is allowed"
            if there == now:
                inside, outside = outside, outside * step
        if there == now:
            continue
        while go_on() and max(inside / outside, outside / inside) > FINE:
            middle = (inside * outside) ** 0.5
            other = choice_at(middle) or "nothing is allowed"
            if other == now:
                inside = middle
            else:
                outside, there = middle, other
        found.append((outside, there))
    return found


def fleet_flips(
    instance: Instance,
    question: Question,
    choice: Choice,
    again: Again,
    clock: Clock = time.monotonic,
) -> list[str]:
    """Where another pair of kinds would be rented: link speed, batch, context length, rate of requests.

    Parameters
    ----------
    again : callable
        Asks the same question with other ``rate_per_s``, ``isl``.
    """
    until = clock() + min(BUDGET_S, SHARE * instance.time_limit_s)
    assert question.rate_per_s is not None
    rate = question.rate_per_s
    lines: list[str] = []
    for pair, isl in question.prompts.items():
        now = name_of(choice.assignment, pair)

        def taken(other: Instance, pair: tuple[str, str] = pair, now: str = now) -> str | None:
            names = cheapest(other, pair, choice.assignment)
            return now if now in names else next(iter(names), None)

        def at_isl(factor: float, isl: int = isl) -> str | None:
            return taken(parse(again(isl=max(1, round(isl * factor))).problem))

        def at_rate(factor: float) -> str | None:
            return taken(parse(again(rate_per_s=rate * factor).problem))

        for cap in (256, 64, 16, 4, 1):
            if clock() >= until:
                break
            smaller = taken(with_batches(instance, pair, cap))
            if smaller != now:
                verb = "nothing is allowed" if smaller is None else f"{smaller} is taken"
                lines.append(f"With batches of {cap} at most, {verb} in place of {now}.")
                break
        scales: Sequence[tuple[str, Callable[[float], str | None], Callable[[float], str]]] = (
            ("links at", lambda f: taken(with_links(instance, f)), lambda f: f"{f:.2g} times their speed"),
            ("prompts of", at_isl, lambda f, isl=isl: f"{isl * f:,.0f} tokens"),  # type: ignore[misc]
            ("a rate of", at_rate, lambda f: f"{rate * f:.3g} requests a second"),
        )
        for what, choice_at, said in scales:
            for factor, other in flip(choice_at, now, lambda: clock() < until):
                end = "or more" if factor > 1 else "or less"
                verb = other if other == "nothing is allowed" else f"{other} is taken"
                lines.append(f"With {what} {said(factor)} {end}, {verb} in place of {now}.")
    return lines


def with_links(instance: Instance, factor: float) -> Instance:
    """All links faster by a factor."""
    wires = {
        ends: replace(
            wire,
            bytes_per_s=None if wire.bytes_per_s is None else wire.bytes_per_s * factor,
            seconds=None if wire.seconds is None else wire.seconds / factor,
        )
        for ends, wire in instance.wires.items()
    }
    return replace(instance, wires=wires)


def with_batches(instance: Instance, pair: tuple[str, str], most: int) -> Instance:
    """Only engines with so many requests at a time at most."""
    units = dict(instance.units)
    for name in pair:
        options = {
            key: option for key, option in units[name].options.items() if int(key.rpartition("-b")[2]) <= most
        }
        units[name] = replace(units[name], options=options)
    return replace(instance, units=units)


def with_price(instance: Instance, device: str, factor: float) -> Instance:
    """One device dearer by a factor, by the hour and by the call."""
    machine = instance.machines[device]
    machines = {**instance.machines, device: replace(machine, usd_per_hour=machine.usd_per_hour * factor)}
    units = {
        name: replace(
            unit,
            options={
                key: replace(option, usd=option.usd * factor) if option.device == device else option
                for key, option in unit.options.items()
            },
        )
        for name, unit in instance.units.items()
    }
    return replace(instance, machines=machines, units=units)


def plan_flips(
    instance: Instance, choice: Choice, found: Sequence[Candidate], clock: Clock = time.monotonic
) -> list[str]:
    """Where another known placement would beat this one: link speed, and prices under cost.

    Placements are the simple rules' and those that differ in one stage; the optimum may change sooner.
    """
    until = clock() + min(BUDGET_S, SHARE * instance.time_limit_s)
    rivals = list(_rivals(instance, choice, found))
    lines = []
    figures: list[tuple[str, Callable[[float], Instance]]] = []
    if instance.wires:
        figures.append(("links at {:.2g} times their speed", lambda f: with_links(instance, f)))
    if instance.objective == "cost":
        for device in dict.fromkeys(o.device for u in instance.units.values() for o in u.options.values()):
            if instance.machines[device].usd_per_hour:
                now = instance.machines[device].usd_per_hour
                said = f"{device} at {{:.2g}} times its ${now:.3g} an hour"
                figures.append((said, lambda f, d=device: with_price(instance, d, f)))  # type: ignore[misc]
    for text, changed in figures:

        def better(factor: float, changed: Callable[[float], Instance] = changed) -> str | None:
            other = changed(factor)
            mine = _value(other, choice.assignment, choice.order)
            worth = [(_value(other, places, None), _differing(choice, places)) for places in rivals]
            best = min(worth, default=(mine, "this"))
            return best[1] if best[0] < mine * (1 - BETTER) else "this"

        for factor, where in flip(better, "this", lambda: clock() < until):
            end = "or more" if factor > 1 else "or less"
            lines.append(f"With {text.format(factor)} {end}, it is better to run {where}.")
    return lines


def _rivals(instance: Instance, choice: Choice, found: Sequence[Candidate]) -> Iterator[Mapping[str, str]]:
    mine = dict(choice.assignment)
    seen = {tuple(mine.values())}
    every = [c.assignment for c in found if c.assignment is not None and c.feasible]
    for members in instance.groups.values():
        shared = set.intersection(*(set(instance.units[m].options) for m in members))
        every += [{**mine, **dict.fromkeys(members, key)} for key in sorted(shared)]
    for places in every:
        order = tuple(places[name] for name in instance.units)
        if order not in seen:
            seen.add(order)
            yield places


def _value(instance: Instance, places: Mapping[str, str], order: Sequence[str] | None) -> float:
    verdict = judge(instance, places, order)
    return verdict.objective if verdict.feasible and verdict.objective is not None else float("inf")


def _differing(choice: Choice, places: Mapping[str, str]) -> str:
    moved = [f"{stage} on {place}" for stage, place in places.items() if place != choice.assignment[stage]]
    return ", ".join(moved[:4]) + (f" and {len(moved) - 4} more elsewhere" if len(moved) > 4 else "")
