"""The nouns: frozen data that every step takes or gives, and their files on disk.

Nothing here imports torch, ray, matplotlib or pandas at import time: a saved run
and a saved plan open where those are missing.
"""

from __future__ import annotations

from gimlet_lab.model.device import Device, Fleet, Link, MemoryTier, Quantity
from gimlet_lab.model.estimate import Estimate
from gimlet_lab.model.graph import Edge, Graph, Stage
from gimlet_lab.model.meters import MeterSeries
from gimlet_lab.model.phase import Phase
from gimlet_lab.model.plan import Plan
from gimlet_lab.model.recording import ModuleInfo, Op, Recording, Sample, Span, Transfer
from gimlet_lab.model.run import Run
from gimlet_lab.model.stacks import Stacks
from gimlet_lab.model.work import Work

__all__ = [
    "Device",
    "Edge",
    "Estimate",
    "Fleet",
    "Graph",
    "Link",
    "MemoryTier",
    "MeterSeries",
    "ModuleInfo",
    "Op",
    "Phase",
    "Plan",
    "Quantity",
    "Recording",
    "Run",
    "Sample",
    "Span",
    "Stacks",
    "Stage",
    "Transfer",
    "Work",
]
