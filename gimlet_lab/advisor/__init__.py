"""Graph, fleet and goal ► plan: the placement problem, its judge, its solvers, and the reasons."""

from __future__ import annotations

from gimlet_lab.advisor.alternatives import alternatives
from gimlet_lab.advisor.front import pareto
from gimlet_lab.advisor.judge import evaluate
from gimlet_lab.advisor.pairs import pairs
from gimlet_lab.advisor.plan import advise
from gimlet_lab.advisor.solver import solve

__all__ = ["advise", "alternatives", "evaluate", "pairs", "pareto", "solve"]
