"""What capture saw while a cell ran: raw, in memory, before any analysis.

A recording is never written to disk; the :class:`~gimlet_lab.model.run.Run` computed from it is.
All times are seconds since the start of the cell on one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gimlet_lab.model.meters import MeterSeries
from gimlet_lab.model.stacks import StackRecording
from gimlet_lab.model.work import Work


@dataclass(frozen=True, slots=True)
class Span:
    """One bounded piece of work: the cell, a function of the notebook, an outermost module call.

    Attributes
    ----------
    id : int
        Unique within the run; the cell itself is span 0.
    name : str
        The function's qualified name, or the module's class name.
    kind : str
        ``cell``, ``function``, ``module``, ``wait``, ``transfer``, or ``profiling``: the cell waited for us.
    start_s, duration_s : float
    parent : int or None
        The span it ran inside of.
    thread : int
        0 is the thread that ran the cell.
    role : str or None
        Module calls: ``prefill``, ``decode``, ``embed`` or ``forward``.
    target : str or None
        How to find the live object again: ``llm``, ``pipe.model`` for modules, ``search`` for
        functions, as an expression in the notebook's namespace.
    signature : str or None
        Module calls: the input signature that says which calls are alike.
    looked : bool
        Whether every operator inside was recorded (slow), or only the clock ran.
    attributes : mapping
        ``q_len``, ``past_len``, ``batch``, ``error``, ``gen_ai.*``, ``look_overhead_s``, ….
    """

    id: int
    name: str
    kind: str
    start_s: float
    duration_s: float
    parent: int | None = None
    thread: int = 0
    role: str | None = None
    target: str | None = None
    signature: str | None = None
    looked: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def end_s(self) -> float:
        """When it ended."""
        return self.start_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Op:
    """Equal operator calls, back to back, inside one span.

    Attributes
    ----------
    op : str
        torch's name, ``aten::mm``.
    span : int
        The span it ran in.
    module : str
        Path of the innermost module below the outermost one (``layers.3.mlp.up_proj``), or ``""``.
    work : Work or None
        The arithmetic, ``count`` 1; None where nobody knows.
    start_s, duration_s : float
        Of all the calls this row stands for.
    flops : float or None
        Of all the calls. None is unknown.
    bytes_read, bytes_written : float or None
        Of all the calls: views free, in-place once, broadcast operands once.
    dtype, device : str
    count : int
    weight_bytes : float
        The part of ``bytes_read`` that is parameters or buffers of a module.
    kv_bytes : float
        The part of ``bytes_read`` that is KV cache.
    device_timed : bool
        On an accelerator: timed by the device's own events; the host's clock only sees launches.
    gradient_bytes, state_bytes : float
        The part of ``bytes_read`` that is gradients of parameters, and an optimizer's state. The rest is
        activations.
    """

    op: str
    span: int
    module: str
    work: Work | None
    start_s: float
    duration_s: float
    flops: float | None
    bytes_read: float | None
    bytes_written: float | None
    dtype: str
    device: str
    count: int = 1
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    device_timed: bool = False
    gradient_bytes: float = 0.0
    state_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """Data that one span made and another one read.

    Attributes
    ----------
    producer, consumer : int
        Span ids; the producer ended first.
    name : str
        What it is to the reader: an argument's name, ``past_key_values``, ``tensor``.
    kind : str
        ``activation``, ``kv`` or ``object``.
    known : str
        ``tensor`` (same storage) or ``object`` (same Python object).
    bytes : float or None
    key : str
        Names the thing itself: transfers with one key are the same data read again.
    """

    producer: int
    consumer: int
    name: str
    kind: str
    known: str
    bytes: float | None
    key: str


@dataclass(frozen=True, slots=True)
class Sample:
    """What the thread of the cell did in one short interval, by the scheduler's own account.

    Attributes
    ----------
    start_s, duration_s : float
    running_s : float
        On a core.
    runnable_s : float
        Wanted a core and had none: a busy machine, not a wait.
    blocked_s : float
        Slept by its own choice (a voluntary switch).
    others_s : float
        CPU time of the process's other threads meanwhile: a thread that sleeps while its own
        pool computes does not wait.
    """

    start_s: float
    duration_s: float
    running_s: float
    runnable_s: float
    blocked_s: float
    others_s: float


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """One outermost module that the cell called.

    Attributes
    ----------
    target : str
        The expression that finds it in the notebook; unique.
    class_name : str
    weights : mapping of str to int
        Bytes of parameters and buffers per block (``model.layers.0``, ``lm_head``), shared storage
        counted once.
    dtype, device : str
    compiled : bool
        Has compiled parts: never looked into.
    """

    target: str
    class_name: str
    weights: Mapping[str, int]
    dtype: str
    device: str
    compiled: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """Everything capture saw of one cell.

    Attributes
    ----------
    spans : tuple of Span
        Span 0 is the cell.
    ops : tuple of Op
        Ordered by start.
    transfers : tuple of Transfer
    samples : tuple of Sample
        Of the cell's thread, contiguous, ordered.
    modules : tuple of ModuleInfo
    sources : mapping of str to str
        Source text by file name of the cell and of the notebook's functions it called. For
        def-use analysis only; never stored.
    frames : mapping of span id to (str, int)
        Function spans: file name and line of the *call* in the caller, for def-use analysis.
    functions : mapping of span id to (str, int)
        Function spans: file name and first line of the function's own definition.
    declared : mapping of target to mapping
        What ``@gimlet.stage`` said of a function: ``{"pure": bool, "idempotent": bool, "name": str}``.
    status : str
        ``ok``, ``failed`` or ``interrupted``.
    error : str or None
        Class of the exception that ended the cell.
    overhead_s : float
        Seconds spent inside our callbacks, looks included.
    notes : tuple of str
        What was not seen and why, one line each.
    threads : int
        torch's intra-op threads while the cell ran.
    meters : tuple of MeterSeries
        What the devices' meters said, on the same clock.
    stacks : StackRecording
        Call stacks of the process's threads.
    inferred : tuple of Op
        Rows of what was not looked at between the module calls of a library's loop, as the gaps looked at
        before and after say.
    """

    spans: tuple[Span, ...]
    ops: tuple[Op, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    samples: tuple[Sample, ...] = ()
    modules: tuple[ModuleInfo, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    frames: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    functions: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    declared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    status: str = "ok"
    error: str | None = None
    overhead_s: float = 0.0
    notes: tuple[str, ...] = ()
    threads: int = 1
    meters: tuple[MeterSeries, ...] = ()
    stacks: StackRecording = field(default_factory=StackRecording)
    inferred: tuple[Op, ...] = ()
