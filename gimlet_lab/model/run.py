"""One profiled cell, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gimlet_lab.model.columns import frame
from gimlet_lab.model.device import Device
from gimlet_lab.model.estimate import Estimate
from gimlet_lab.model.graph import Graph
from gimlet_lab.model.meters import MeterSeries
from gimlet_lab.model.phase import Phase
from gimlet_lab.model.recording import ModuleInfo, Op, Span
from gimlet_lab.model.stacks import STACK_COLUMNS, Stacks

if TYPE_CHECKING:
    import pandas

SCHEMA = "gimlet.run/1"


@dataclass(frozen=True, slots=True)
class Run:
    """One profiled cell: computed once when the cell ends, stored as data, loads without torch.

    Attributes
    ----------
    name : str
    status : str
        ``ok``, ``failed`` or ``interrupted``.
    error : str or None
        Class of the exception that ended the cell.
    started : str
        ISO time, UTC.
    duration_s : float
    overhead_s : float
        The part of ``duration_s`` that profiling itself took, as measured.
    device : Device
        What it ran on, with its calibration.
    environment : mapping
        Versions of Python, torch and ours, platform, threads, cores.
    operators : tuple of Op
        Rows of equal calls. ``inferred`` ones stand for calls that were not looked at.
    inferred : tuple of bool
        Beside ``operators``.
    stage_of : tuple of str or None
        Beside ``operators``: the stage each belongs to.
    span_list : tuple of Span
    span_stage : mapping of span id to stage id
    phase_list : tuple of Phase
    graph : Graph
    modules : tuple of ModuleInfo
    min_phase_s : float
        The shortest stretch that counts as a phase of its own.
    sampled : Stacks
        Call stacks, where they were sampled.
    notes : tuple of str
        What was not seen, and why.
    deployment : mapping
        Stage to device, when the cell ran under a plan; empty otherwise.
    transferred_bytes : float
        Bytes that crossed between workers under a plan.
    predicted : mapping of stage id to Estimate
        What one call was expected to take, by the model and the runs before this one.
    text : str or None
        Source of the cell, only when asked for (``--keep-text``).
    dry : bool
        It ran on fake tensors: no time was measured, all are the cost model's for ``device``.
    meter_list : tuple of MeterSeries
        What the devices' meters said; ``meters`` has it as a table.
    display : mapping
        What charts draw: geometry and labels, computed once (``render/display.py``).
    """

    name: str
    status: str
    error: str | None
    started: str
    duration_s: float
    overhead_s: float
    device: Device
    environment: Mapping[str, Any]
    operators: tuple[Op, ...] = ()
    inferred: tuple[bool, ...] = ()
    stage_of: tuple[str | None, ...] = ()
    span_list: tuple[Span, ...] = ()
    span_stage: Mapping[int, str] = field(default_factory=dict)
    phase_list: tuple[Phase, ...] = ()
    graph: Graph = field(default_factory=Graph)
    modules: tuple[ModuleInfo, ...] = ()
    min_phase_s: float = 0.0
    sampled: Stacks = field(default_factory=Stacks)
    notes: tuple[str, ...] = ()
    deployment: Mapping[str, str] = field(default_factory=dict)
    transferred_bytes: float = 0.0
    predicted: Mapping[str, Estimate] = field(default_factory=dict)
    text: str | None = None
    dry: bool = False
    meter_list: tuple[MeterSeries, ...] = ()
    display: Mapping[str, Any] = field(default_factory=dict)

    @property
    def net_s(self) -> float:
        """The cell's time less the measured overhead of profiling it."""
        return max(0.0, self.duration_s - self.overhead_s)

    @property
    def measured_on(self) -> Device | None:
        """Where its times were measured; None for a dry run."""
        return None if self.dry else self.device

    @property
    def peak_bytes(self) -> int | None:
        """Memory at its fullest: all weights, and state and activations of a stage; None is unknown."""
        peaks = [stage.peak_bytes for stage in self.graph.stages if stage.kind == "module"]
        known = [peak for peak in peaks if peak is not None]
        if not known or len(known) < len(peaks):
            return None
        return max(known) + self.weight_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, those that stages share once."""
        return sum({name: n for stage in self.graph.stages for name, n in stage.weights.items()}.values())

    @property
    def ops(self) -> pandas.DataFrame:
        """Operators as a DataFrame; a row may stand for ``count`` equal calls. Unknown is missing."""
        roles = {stage.id: stage.role for stage in self.graph.stages}
        # Column by column: a dictionary for each of a million rows would take gigabytes.
        columns = {
            name: [getattr(op, name) for op in self.operators] for name in _OP_COLUMNS if name in _OF_OP
        }
        columns["stage"] = list(self.stage_of)
        columns["role"] = [roles.get(stage) if stage else None for stage in self.stage_of]
        columns["inferred"] = list(self.inferred)
        return frame({name: columns[name] for name in _OP_COLUMNS})

    @property
    def phases(self) -> pandas.DataFrame:
        """Phases as a DataFrame. Unknown is missing."""
        rows = [{**asdict(phase), "intensity": phase.intensity} for phase in self.phase_list]
        return frame({name: [row[name] for row in rows] for name in _PHASE_COLUMNS})

    @property
    def meters(self) -> pandas.DataFrame:
        """Readings of all devices, one below the other: ``time_s``, ``device``, a column for each reading."""
        import pandas

        parts = [
            pandas.DataFrame({"time_s": one.time_s, "device": one.device, **one.readings})
            for one in self.meter_list
        ]
        if not parts:
            return pandas.DataFrame(columns=["time_s", "device"])
        return pandas.concat(parts, ignore_index=True)

    @property
    def spans(self) -> pandas.DataFrame:
        """Spans as a DataFrame; attributes are columns of their own."""
        rows = [
            {
                "id": span.id,
                "name": span.name,
                "kind": span.kind,
                "start_s": span.start_s,
                "duration_s": span.duration_s,
                "parent": span.parent,
                "role": span.role,
                "stage": self.span_stage.get(span.id),
                "looked": span.looked,
                **span.attributes,
            }
            for span in self.span_list
        ]
        names = dict.fromkeys(name for row in rows for name in row)
        return frame({name: [row.get(name) for row in rows] for name in names})

    @property
    def stacks(self) -> pandas.DataFrame:
        """Sampled call stacks as a DataFrame, a row for each stretch in one stack. Unknown is missing.

        ``function``, ``file`` and ``line`` are the innermost frame; ``cell``, ``cell_line`` and
        ``cell_function`` the innermost one of the notebook's own code; ``frames`` all of them, folded.
        ``running_s`` was on a core, or waited for one or for the interpreter; ``idle_s`` was not.
        ``phase`` is a row of ``phases``.
        """
        import pandas

        return pandas.DataFrame(self.sampled.rows(self.phase_list), columns=STACK_COLUMNS)

    def save(self, path: str | Path) -> Path:
        """Write the run to one file, atomically; see :mod:`gimlet_lab.model.store`."""
        from gimlet_lab.model.store import save

        return save(self, path)

    @staticmethod
    def load(path: str | Path) -> Run:
        """Read a run.

        Raises
        ------
        RunFileError
            If the file is cut short, of another kind or of a newer version.
        """
        from gimlet_lab.model.store import load

        return load(path)


_OF_OP = {column.name for column in fields(Op)}
_OP_COLUMNS = [
    "op", "module", "stage", "role", "device", "start_s", "duration_s",
    "flops", "bytes_read", "bytes_written", "weight_bytes", "kv_bytes", "gradient_bytes", "state_bytes",
    "dtype", "count", "inferred",
]  # fmt: skip
_PHASE_COLUMNS = [
    "start_s", "duration_s", "bound", "stage", "role", "flops", "bytes", "intensity", "warmup",
    "joules", "throttled",
]  # fmt: skip
