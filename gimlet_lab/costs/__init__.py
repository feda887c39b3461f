"""What works.

Stages and served models take on a device: measured where they ran, by kernel tables or a model elsewhere.
"""

from __future__ import annotations

from gimlet_lab.costs.serving import estimate_serving
from gimlet_lab.costs.stages import stage_estimate
from gimlet_lab.costs.tiers import estimate

__all__ = ["estimate", "estimate_serving", "stage_estimate"]
