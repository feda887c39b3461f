"""Atoms: the smallest pieces of a cell."""

from __future__ import annotations

from dataclasses import dataclass

from gimlet_lab.model.phase import BOUNDS

Shares = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Atom:
    """A piece of the cell.

    Attributes
    ----------
    start_s, duration_s : float
    stage : str or None
        None is glue.
    shares : tuple of float
        Seconds by bound, in the order of :data:`~gimlet_lab.model.phase.BOUNDS`; they sum to at most the
        duration.
    flops, bytes : float or None
        None where nobody saw what it did.
    warmup : bool
    weight : float
        What its shares count as evidence, at most 1. Less where the thread wanted a core and had none. For
        operators inside a module, the part of their time that their roof explains: on a busy machine the
        small ones wait long for the other threads, and must not outvote the product that works. So a module
        is held back by the roof that most of its ideal time lies under.
    """

    start_s: float
    duration_s: float
    stage: str | None
    shares: Shares
    flops: float | None = None
    bytes: float | None = None
    warmup: bool = False
    weight: float = 1.0


def part_of(atom: Atom, start_s: float, end_s: float) -> Atom:
    """Cut an atom; its seconds, FLOPs and bytes are spread evenly over it."""
    part = (end_s - start_s) / atom.duration_s
    # Not by dataclasses.replace, which takes twice as long: a cell is cut into thousands.
    return Atom(
        start_s,
        end_s - start_s,
        atom.stage,
        tuple(share * part for share in atom.shares),
        None if atom.flops is None else atom.flops * part,
        None if atom.bytes is None else atom.bytes * part,
        atom.warmup,
        atom.weight,
    )


def all_in(bound: int, seconds: float) -> Shares:
    """Give all seconds to one bound."""
    shares = [0.0] * len(BOUNDS)
    shares[bound] = seconds
    return tuple(shares)
