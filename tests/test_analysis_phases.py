"""Phases: exact cover, shortest length, hysteresis, and nothing that depends on how atoms are cut."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimlet_lab.analysis.atom import Atom, part_of
from gimlet_lab.analysis.phases import FINENESS, shortest, smooth
from gimlet_lab.model import Phase
from gimlet_lab.model.phase import BOUNDS

MIN_S = 0.010


def atom(
    start_s: float, seconds: float, bound: str = "compute", stage: str | None = "a", warmup: bool = False
) -> Atom:
    shares = tuple(seconds if name == bound else 0.0 for name in BOUNDS)
    return Atom(start_s, seconds, stage, shares, 1e9 * seconds, None, warmup)


def row(*pieces: tuple[float, str, str]) -> list[Atom]:
    atoms, now = [], 0.0
    for seconds, bound, stage in pieces:
        atoms.append(atom(now, seconds, bound, stage))
        now += seconds
    return atoms


def told(found: tuple[Phase, ...]) -> list[tuple[str, str | None]]:
    return [(phase.bound, phase.stage) for phase in found]


pieces = st.lists(
    st.tuples(
        st.floats(1e-5, 0.05),
        st.sampled_from(["compute", "bandwidth", "wait"]),
        st.sampled_from(["a", "b", "c"]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(pieces)
def test_phases_cover_the_cell_without_gap_and_none_is_shorter_than_stated(parts):
    atoms = row(*parts)
    found = smooth(atoms, MIN_S, {})
    total_s = sum(each.duration_s for each in atoms)
    now = 0.0
    for phase in found:
        assert phase.start_s == pytest.approx(now, abs=1e-9)
        now += phase.duration_s
    assert now == pytest.approx(total_s, rel=1e-9)
    assert all(phase.duration_s >= min(MIN_S, total_s) * (1 - 1e-6) for phase in found)


@settings(max_examples=60, deadline=None)
@given(pieces)
def test_no_cut_of_the_cell_into_such_phases_is_cheaper_than_one_phase(parts):
    """The labelling costs at most what the best single label costs: the optimum is over all cuts."""
    atoms = row(*parts)
    found = smooth(atoms, MIN_S, {})

    def wrong_s(low: float, high: float, bound: str, stage: str | None) -> float:
        cost = 0.0
        for each in atoms:
            inside = max(0.0, min(high, each.start_s + each.duration_s) - max(low, each.start_s))
            own = BOUNDS[each.shares.index(max(each.shares))]
            cost += inside * (2.0 if each.stage != stage else 1.0 if own != bound else 0.0)
        return cost

    ours = sum(wrong_s(p.start_s, p.start_s + p.duration_s, p.bound, p.stage) for p in found)
    ours += 0.5 * MIN_S * len(found)
    total_s = atoms[-1].start_s + atoms[-1].duration_s
    single = min(wrong_s(0.0, total_s, bound, stage) for bound in BOUNDS for stage in ("a", "b", "c"))
    assert ours <= single + 0.5 * MIN_S + 1e-9


@settings(max_examples=40, deadline=None)
@given(pieces, st.integers(0, 39), st.floats(0.1, 0.9))
def test_cutting_an_atom_in_two_changes_nothing_but_by_the_grid(parts, which, at):
    atoms = row(*parts)
    index = which % len(atoms)
    whole = atoms[index]
    middle = whole.start_s + at * whole.duration_s
    halves = [part_of(whole, whole.start_s, middle), part_of(whole, middle, whole.start_s + whole.duration_s)]
    cut = [*atoms[:index], *halves, *atoms[index + 1 :]]

    def cost(found: tuple[Phase, ...]) -> float:
        wrong = 0.0
        for phase in found:
            for each in atoms:
                low = max(phase.start_s, each.start_s)
                high = min(phase.start_s + phase.duration_s, each.start_s + each.duration_s)
                own = BOUNDS[each.shares.index(max(each.shares))]
                wrong += max(0.0, high - low) * (
                    2.0 if each.stage != phase.stage else float(own != phase.bound)
                )
        return wrong + 0.5 * MIN_S * len(found)

    before, after = smooth(atoms, MIN_S, {}), smooth(cut, MIN_S, {})
    # Equally good cuts may be chosen differently; how good they are may differ by a step of the grid a cut.
    step = 2.0 * MIN_S / FINENESS * (max(len(before), len(after)) + 1)
    assert cost(after) == pytest.approx(cost(before), abs=step)


def test_long_stretches_of_two_stages_never_merge_whatever_lies_around():
    just_over = 1.01 * MIN_S
    found = smooth(
        row((just_over, "compute", "a"), (just_over, "compute", "b"), (just_over, "compute", "a")), MIN_S, {}
    )
    assert told(found) == [("compute", "a"), ("compute", "b"), ("compute", "a")]


def test_a_short_change_of_bound_does_not_show_and_a_longer_one_does():
    def inside(seconds: float) -> list[tuple[str, str | None]]:
        return told(
            smooth(row((0.1, "compute", "a"), (seconds, "wait", "a"), (0.1, "compute", "a")), MIN_S, {})
        )

    assert inside(0.9 * MIN_S) == [("compute", "a")]
    assert inside(1.1 * MIN_S) == [("compute", "a"), ("wait", "a"), ("compute", "a")]


def test_a_flicker_of_two_bounds_is_one_phase_of_the_commoner_one():
    flicker = [(4e-4, "bandwidth", "a"), (1e-4, "overhead", "a")] * 400
    assert told(smooth(row(*flicker), MIN_S, {})) == [("bandwidth", "a")]


def test_boundaries_of_long_stages_are_exact():
    found = smooth(row((0.0123, "wait", "a"), (0.5, "compute", "b"), (0.0345, "wait", "c")), MIN_S, {})
    assert [phase.start_s for phase in found] == pytest.approx([0.0, 0.0123, 0.5123], abs=1e-9)


def test_first_touch_is_a_phase_of_its_own():
    warm = atom(0.0, 0.05, warmup=True)
    found = smooth([warm, atom(0.05, 0.05)], MIN_S, {"a": "embed"})
    assert [(phase.warmup, phase.role) for phase in found] == [(True, "embed"), (False, "embed")]


def test_seconds_that_only_the_looking_took_sway_nothing():
    looked = Atom(0.0, 0.2, "a", tuple(0.02 if name == "bandwidth" else 0.0 for name in BOUNDS))
    assert told(smooth([looked, *row_from(0.2, (0.03, "bandwidth", "a"))], MIN_S, {})) == [("bandwidth", "a")]


def row_from(start_s: float, *parts: tuple[float, str, str]) -> list[Atom]:
    return [
        Atom(each.start_s + start_s, each.duration_s, each.stage, each.shares, each.flops, each.bytes)
        for each in row(*parts)
    ]


def test_a_cell_shorter_than_a_phase_is_one_phase_and_an_empty_one_none():
    assert told(smooth(row((1e-4, "wait", "a"), (2e-4, "compute", "b")), MIN_S, {})) == [("compute", "b")]
    assert smooth([], MIN_S, {}) == ()


def test_unknown_flops_stay_unknown_unless_they_are_of_little_of_the_time():
    known, unknown = atom(0.0, 0.1), Atom(0.1, 0.02, "a", atom(0.1, 0.02).shares)
    assert smooth([known, unknown], MIN_S, {})[0].flops == pytest.approx(1e8)
    longer = Atom(0.1, 0.05, "a", atom(0.1, 0.05).shares)
    assert smooth([known, longer], MIN_S, {})[0].flops is None
    assert smooth([known], MIN_S, {})[0].bytes is None


def test_flops_of_all_phases_sum_to_those_of_the_atoms():
    atoms = row((0.03, "compute", "a"), (0.02, "wait", "b"), (0.04, "compute", "a"))
    by_stage: dict[str | None, float] = defaultdict(float)
    for phase in smooth(atoms, MIN_S, {}):
        assert phase.flops is not None
        by_stage[phase.stage] += phase.flops
    assert by_stage == pytest.approx({"a": 7e7, "b": 2e7})


def test_the_shortest_phase_grows_with_the_cell():
    assert shortest(0.1) == pytest.approx(2e-3)
    assert shortest(10.0) == pytest.approx(0.05)
