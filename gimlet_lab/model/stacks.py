"""What Python was doing, sampled: call stacks as a tree, and the stretches of time each was seen for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, NamedTuple

from gimlet_lab.model.phase import Phase

#: Distinct stacks that are told apart; what is deeper than the tree can hold counts for its caller.
MAX_NODES = 50_000

#: Columns of a run's ``stacks``.
STACK_COLUMNS = [
    "time_s", "duration_s", "running_s", "idle_s", "state", "thread", "device", "stage", "phase", "bound",
    "function", "file", "line", "cell", "cell_line", "cell_function", "frames",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Frame:
    """One place in a call stack. No source text: a function's name and a line number only.

    Attributes
    ----------
    function : str
        Its qualified name, as far as Python tells.
    file : str
        ``In[3]`` for a cell of the notebook; the path below the package folder for others.
    line : int or None
        None in native code.
    cell : bool
        Of the notebook's own code.
    """

    function: str
    file: str
    line: int | None
    cell: bool = False

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{self.function} ({where})"


@dataclass(frozen=True, slots=True)
class StackThread:
    """A thread whose stacks were sampled.

    Attributes
    ----------
    name : str
    lane : int or None
        Beside :attr:`Span.thread`: 0 is the thread of the cell; None in another process.
    device : str or None
        The device whose worker process it is in; None in this process.
    """

    name: str
    lane: int | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class StackSample:
    """A stretch of time during which a thread was seen in one stack.

    Attributes
    ----------
    start_s, duration_s : float
    running_s : float or None
        The part of it on a core, or waiting for one or for the interpreter; the rest was idle.
    thread, node : int
        Their numbers in :class:`Stacks`.
    stage : str or None
        What it belongs to.
    phase : int or None
        Which of the run's phases it lies in.
    """

    start_s: float
    duration_s: float
    running_s: float | None
    thread: int
    node: int
    stage: str | None = None
    phase: int | None = None

    @property
    def idle_s(self) -> float | None:
        """The part of it that waited for something else: a lock, the network, a disk, time."""
        return None if self.running_s is None else max(0.0, self.duration_s - self.running_s)

    @property
    def state(self) -> str | None:
        """``running`` or ``idle``, whichever it was for longer."""
        if self.running_s is None:
            return None
        return "running" if 2 * self.running_s >= self.duration_s else "idle"


@dataclass(frozen=True, slots=True)
class Stacks:
    """Sampled stacks.

    Attributes
    ----------
    frames : tuple of Frame
    nodes : tuple of (int, int)
        The tree: a node's parent (-1 at the root) and its frame. Parents come before their children.
    threads : tuple of StackThread
    samples : tuple of StackSample
    rate_hz : float
        How often was looked, at most.
    source : str
        ``py-spy``, ``in-process``, or both where one took over from the other; empty: nothing was sampled.
    """

    frames: tuple[Frame, ...] = ()
    nodes: tuple[tuple[int, int], ...] = ()
    threads: tuple[StackThread, ...] = ()
    samples: tuple[StackSample, ...] = ()
    rate_hz: float = 0.0
    source: str = ""

    def path(self, node: int) -> list[Frame]:
        """The frames of a node, the outermost first."""
        found = []
        while node >= 0:
            node, frame = self.nodes[node]
            found.append(self.frames[frame])
        return found[::-1]

    def rows(self, phases: Sequence[Phase]) -> list[dict[str, Any]]:
        """A row for each sample, with the names of :data:`STACK_COLUMNS`."""
        bounds: dict[int | None, str] = {number: phase.bound for number, phase in enumerate(phases)}
        places = [self._place(node) for node in range(len(self.nodes))]
        return [
            {
                "time_s": sample.start_s,
                "duration_s": sample.duration_s,
                "running_s": sample.running_s,
                "idle_s": sample.idle_s,
                "state": sample.state,
                "thread": self.threads[sample.thread].name,
                "device": self.threads[sample.thread].device,
                "stage": sample.stage,
                "phase": sample.phase,
                "bound": bounds.get(sample.phase),
                **places[sample.node],
            }
            for sample in self.samples
        ]

    def of_cell(self, sample: StackSample) -> bool:
        """Whether a sample is of the thread that ran the cell."""
        return self.threads[sample.thread].lane == 0

    def own(self, node: int) -> Frame | None:
        """The innermost frame of the notebook's own code."""
        while node >= 0:
            node, frame = self.nodes[node]
            if self.frames[frame].cell:
                return self.frames[frame]
        return None

    def _place(self, node: int) -> dict[str, Any]:
        leaf, own = self.frames[self.nodes[node][1]], self.own(node)
        return {
            "function": leaf.function,
            "file": leaf.file,
            "line": leaf.line,
            "cell": own.file if own else None,
            "cell_line": own.line if own else None,
            "cell_function": own.function if own else None,
            "frames": ";".join(map(str, self.path(node))),
        }

    def to_json(self) -> dict[str, Any]:
        """What is not a column."""
        return {
            "frames": [list(astuple(frame)) for frame in self.frames],
            "nodes": [list(node) for node in self.nodes],
            "threads": [list(astuple(thread)) for thread in self.threads],
            "rate_hz": self.rate_hz,
            "source": self.source,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], samples: tuple[StackSample, ...]) -> Stacks:
        """The inverse of :meth:`to_json`; ValueError where a number points nowhere."""
        frames = tuple(Frame(*entry) for entry in data["frames"])
        nodes = tuple((int(parent), int(frame)) for parent, frame in data["nodes"])
        threads = tuple(StackThread(*entry) for entry in data["threads"])
        for number, (parent, frame) in enumerate(nodes):
            if not (-1 <= parent < number and 0 <= frame < len(frames)):
                raise ValueError(f"stack node {number} points nowhere")
        for sample in samples:
            if not (0 <= sample.thread < len(threads) and 0 <= sample.node < len(nodes)):
                raise ValueError("a stack sample points nowhere")
        return Stacks(frames, nodes, threads, samples, data["rate_hz"], data["source"])


class Tree:
    """Call stacks as they come in, equal beginnings kept once.

    Examples
    --------
    >>> tree = Tree()
    >>> outer, inner = Frame("f", "In[1]", 2, True), Frame("g", "In[1]", 5, True)
    >>> tree.add([outer]), tree.add([outer, inner]), tree.add([outer, inner])
    (0, 1, 1)
    """

    def __init__(self) -> None:
        self.frames: dict[Frame, int] = {}
        self.nodes: dict[tuple[int, int], int] = {}

    def add(self, path: Sequence[Frame]) -> int:
        """The node of a stack, the outermost frame first; -1 for an empty one."""
        node = -1
        for frame in path:
            number = self.frames.get(frame)
            if number is None:
                if len(self.nodes) >= MAX_NODES:
                    break
                number = self.frames[frame] = len(self.frames)
            below = self.nodes.get((node, number))
            if below is None:
                if len(self.nodes) >= MAX_NODES:
                    break
                below = self.nodes[node, number] = len(self.nodes)
            node = below
        return node


class Seen(NamedTuple):
    """A thread was in one stack from ``start_s`` to ``end_s``."""

    thread: int
    start_s: float
    end_s: float
    node: int


@dataclass(frozen=True, slots=True)
class StackRecording:
    """Stacks as capture saw them, before they are placed in stages and phases.

    Attributes
    ----------
    frames, nodes, threads, rate_hz, source
        As in :class:`Stacks`.
    seen : tuple of Seen
        Ordered by thread and start; those of one thread do not overlap.
    accounts : mapping of thread to (seconds, seconds)
        When was read how long a thread had been active in all, and how long; both never fall.
    """

    frames: tuple[Frame, ...] = ()
    nodes: tuple[tuple[int, int], ...] = ()
    threads: tuple[StackThread, ...] = ()
    seen: tuple[Seen, ...] = ()
    accounts: Mapping[int, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    rate_hz: float = 0.0
    source: str = ""
