"""Every command, for the notebook (``%gimlet``) and the shell (``gimlet``), and the one parser for both.

What a command does is in :mod:`gimlet_lab.actions`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from gimlet_lab import actions
from gimlet_lab.actions import Answer, not_built, said
from gimlet_lab.errors import UnknownNameError, UsageError
from gimlet_lab.hardware.prices import BASES
from gimlet_lab.model import Fleet, Plan, Run
from gimlet_lab.notebook import Notebook, check_variable
from gimlet_lab.parser import Parser, count, limits, pair, price, rate, seconds, split, stretches

BOTH = ("notebook", "shell")
NOTEBOOK = ("notebook",)


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes
    ----------
    summary : str
    declare : callable
        Adds its arguments to a parser; says whether it is for the shell.
    run : callable
    where : tuple of str
        ``notebook``, ``shell``.
    output : tuple of str
        Where ``-o`` takes its value: into a variable, into a file.
    """

    summary: str
    declare: Callable[[Parser, bool], None]
    run: Callable[[Notebook, Namespace], Answer]
    where: tuple[str, ...] = BOTH
    output: tuple[str, ...] = ()


#: Of the contract, but not in this version: said, never pretended.
NOT_BUILT = {
    "watch": "adaptation at run time",
}

VIEWS = {
    "phases": "the phases of a run and what holds each back",
    "roofline": "the stages of a run on the roofline of its device",
    "graph": "the stages of a run and the data between them",
    "calls": "the calls of a run: functions and modules, by time",
    "stacks": "what Python was doing on which line, by stage and bound: a flame graph",
}


@cache
def parser(prog: str) -> Parser:
    """The parser of ``%gimlet`` or of ``gimlet``."""
    in_shell = not prog.startswith("%")
    top = Parser(prog=prog, description="Profile a cell, see what holds it back, and place its parts.")
    group = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    place = "shell" if in_shell else "notebook"
    for name, command in COMMANDS.items():
        if place not in command.where:
            continue
        shown = "%%gimlet" if name == "profile" and not in_shell else f"{prog} {name}"
        sub = group.add_parser(name, prog=shown, help=command.summary, description=command.summary)
        command.declare(sub, in_shell)
        if place in command.output:
            where = "write the result to a file" if in_shell else "put the result into a variable"
            sub.add_argument("-o", "--output", metavar="PATH" if in_shell else "VAR", help=where)
    return top


def read_cell_options(words: str) -> Namespace:
    """Read what stands behind ``%%gimlet``.

    Raises
    ------
    GimletError
        In one line: what is wrong, and what is near.

    Examples
    --------
    >>> read_cell_options("--name rag -o run").output
    'run'
    """
    given = split(words)
    if given[:1] == ["profile"]:
        given = given[1:]
    elif given and given[0] in {**COMMANDS, **NOT_BUILT}:
        raise UsageError(
            f"%%gimlet profiles a cell; {given[0]} is a line of its own: %gimlet {' '.join(given)}"
        )
    options = parser("%gimlet").commands()["profile"].parse(given)
    if options.output is not None:
        check_variable(options.output)
    return options


def run_line(words: Sequence[str], notebook: Notebook, prog: str = "%gimlet") -> tuple[Answer, str | None]:
    """Run one command.

    Returns
    -------
    Answer
    str or None
        Where ``-o`` wants its value.

    Raises
    ------
    GimletError
        In one line: what is wrong, and what is near.
    """
    top = parser(prog)
    if not words:
        return said(actions.status(notebook)), None
    name = words[0]
    if name in ("-h", "--help", "help"):
        return said(top.document()), None
    if name in NOT_BUILT:
        raise not_built(f"{name} ({NOT_BUILT[name]})")
    if name not in top.commands():
        if name in COMMANDS:
            raise UsageError(f"{name} needs a notebook: %gimlet {name}")
        raise UnknownNameError("command", name, top.commands())
    if {"-h", "--help"} & set(words[1:]):
        return said(top.document(name)), None
    options = top.parse(words)
    variable: str | None = getattr(options, "output", None)
    if variable is not None and prog.startswith("%"):
        check_variable(variable)
    answer = COMMANDS[name].run(notebook, options)
    # What has written its value itself has taken the wish back.
    return answer, getattr(options, "output", None)


def complete(line: str, notebook: Notebook) -> list[str]:
    """What Tab offers at the end of a line that begins with ``%gimlet`` or ``%%gimlet``."""
    magic, _, rest = line.lstrip().partition(" ")
    words = rest.split()
    word = words.pop() if words and not rest.endswith(" ") else ""
    top = parser("%gimlet")
    if magic == "%%gimlet" and words[:1] != ["profile"]:
        words = ["profile", *words]
    names = {
        "RUN": lambda: notebook.names(Run),
        "PLAN": lambda: notebook.names(Plan),
        "MODEL": _models,
        "ID": _device_ids,
        "ID[:COUNT]": lambda: [*_device_ids(), *notebook.names(Fleet)],
        "TARGET": _targets,
        "SETTING=VALUE": lambda: [f"{option.name}=" for option in fields(notebook.settings)],
        "STAGE=DEVICE": lambda: _stage_pins(notebook),
    }
    return top.complete(words, word, lambda kind: names.get(kind, list)())


def _device_ids() -> Iterable[str]:
    from gimlet_lab.hardware.catalogue import devices

    return ["cpu", *devices()]


def _models() -> Iterable[str]:
    from gimlet_lab.hardware import architectures

    return architectures.names()


def _targets() -> Iterable[str]:
    from gimlet_lab.export import targets

    return list(targets())


def _stage_pins(notebook: Notebook) -> list[str]:
    if not notebook.runs:
        return []
    fleet = [device.id for device in notebook.fleet or ()] or ["cpu"]
    return [f"{stage.id}={device}" for stage in notebook.find_run().graph.stages for device in fleet]


def _declare_nothing(_parser: Parser, _in_shell: bool) -> None:
    """No arguments."""


def _declare_profile(parser: Parser, in_shell: bool) -> None:
    if in_shell:
        parser.add_argument("notebook", metavar="NOTEBOOK", help="runs all of it, in its own folder")
        parser.add_argument(
            "--cells",
            metavar="CELLS",
            help="numbers from 1, ranges, ids or tags (3,5-7,rag); else those with %%%%gimlet",
        )
    parser.add_argument("--name", metavar="NAME", help="what the run is called")
    parser.add_argument("--exact", action="store_true", help="look closely at every call (slow)")
    parser.add_argument("--stacks", action="store_true", help="sample what Python does (slower)")
    parser.add_argument(
        "--native", action="store_true", help="sample stacks of native code too (the cell runs slower)"
    )
    parser.add_argument("--keep-text", action="store_true", help="keep the cell's source in the run")
    if not in_shell:
        parser.add_argument("--quiet", action="store_true", help="show nothing below the cell")
    parser.add_argument("--dry", action="store_true", help="run it on fake tensors: no weights, no device")
    parser.add_argument(
        "--repeat",
        type=count,
        default=0,
        metavar="N",
        help="run the cell N more times; only the last is shown",
    )


def _declare_dry(parser: Parser, _in_shell: bool) -> None:
    parser.add_argument("model", metavar="MODEL", help="llama-3.1-8b, … or a config.json")
    for option, default, text in (
        ("--prompt", None, "tokens of the prompt; 1,024, or as many as fit"),
        ("--new", 128, "tokens of the answer; 128"),
        ("--batch", 1, "sequences at once; 1"),
    ):
        parser.add_argument(option, type=int, default=default, metavar="N", help=text)
    parser.add_argument("--dtype", metavar="DTYPE", help="of weights and activations; the config's")
    parser.add_argument("--on", metavar="ID", help="the device whose times it gets; this machine's CPU")


def _declare_devices(parser: Parser, _in_shell: bool) -> None:
    parser.add_argument("--calibrate", action="store_true", help="measure again, and more (up to a minute)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _declare_fleet(parser: Parser, _in_shell: bool) -> None:
    parser.add_argument(
        "devices", nargs="*", metavar="ID[:COUNT]", help="by spaces or commas; alone it shows the fleet"
    )
    parser.add_argument("--price", choices=BASES, help="which price to plan with; rent where left out")


def _declare_connect(parser: Parser, _in_shell: bool) -> None:
    parser.add_argument("backend", metavar="BACKEND", help="ray")
    parser.add_argument(
        "address",
        nargs="?",
        metavar="ADDRESS",
        help="HOST:PORT of the cluster's head, a variable with it, or auto; left out, one is started here",
    )
    parser.add_argument("--calibrate", action="store_true", help="measure devices and links again")


def _declare_run(parser: Parser, in_shell: bool) -> None:
    parser.add_argument("run", **_optional(in_shell, "RUN"))


def _optional(in_shell: bool, metavar: str) -> dict[str, Any]:
    """A noun that a notebook has a last one of; in the shell it must be named."""
    text = "a .gimlet file" if metavar == "RUN" else "an exported plan"
    if in_shell:
        return {"metavar": metavar, "help": text}
    return {"metavar": metavar, "nargs": "?", "help": f"a variable, a name or {text}; else the last one"}


def _declare_advise(parser: Parser, in_shell: bool) -> None:
    _declare_run(parser, in_shell)
    parser.add_argument(
        "--objective",
        choices=("latency", "throughput", "cost", "energy"),
        metavar="OBJECTIVE",
        default="latency",
        help="latency, throughput, cost or energy",
    )
    parser.add_argument("--on", nargs="+", metavar="ID[:COUNT]", default=(), help="the fleet to plan for")
    parser.add_argument("--slo", type=limits, metavar="LIMITS", help="like ttft=250ms,tpot=20ms,latency=2s")
    parser.add_argument(
        "--pin", type=pair, action="append", default=[], metavar="STAGE=DEVICE", help="only there"
    )
    parser.add_argument(
        "--forbid", type=pair, action="append", default=[], metavar="STAGE=DEVICE", help="never there"
    )
    parser.add_argument(
        "--layers", type=stretches, action="append", default=[], metavar="MODEL=COUNT",
        help="take a model apart into so many stretches of layers, to be placed each by itself",
    )  # fmt: skip
    parser.add_argument(
        "--time-limit", type=seconds, default=30.0, metavar="TIME", help="for the solver; 30s"
    )
    parser.add_argument(
        "--rate", type=rate, metavar="RATE", help="requests to size the fleet for, like 10/s (cost, energy)"
    )
    parser.add_argument("--max-price", type=price, metavar="PRICE", help="for the whole fleet, like 40/h")
    parser.add_argument("--model", metavar="MODEL", help="served in place of the run's (with --rate)")
    parser.add_argument("--dtype", metavar="DTYPE", help="that it is served in: bf16, fp8, … (with --rate)")
    parser.add_argument("--isl", type=count, metavar="N", help="tokens in, a call (with --rate)")
    parser.add_argument("--osl", type=count, metavar="N", help="tokens out, a call (with --rate)")
    parser.add_argument("--robust", action="store_true", help="plan for the slow end of every estimate")


def _declare_apply(parser: Parser, in_shell: bool) -> None:
    parser.add_argument("plan", **_optional(in_shell, "PLAN"))
    parser.add_argument("--backend", metavar="NAME", help="local or ray; else what its devices ask for")
    parser.add_argument("--dry-run", action="store_true", help="only show what would change")


def _declare_export(parser: Parser, _in_shell: bool) -> None:
    parser.add_argument("target", nargs="?", metavar="TARGET", help="alone it lists the targets")
    parser.add_argument("path", nargs="?", metavar="PATH")
    parser.add_argument("--plan", metavar="PLAN", help="else the last one")
    parser.add_argument("--run", metavar="RUN", help="else the last one")
    parser.add_argument(
        "--option",
        type=pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the target: model=llm",
    )


def _declare_save(parser: Parser, in_shell: bool) -> None:
    _declare_run(parser, in_shell)
    parser.add_argument("path", metavar="PATH", help="a .gimlet file")


def _declare_load(parser: Parser, _in_shell: bool) -> None:
    parser.add_argument("path", metavar="PATH", help="a .gimlet file or an exported plan")


def _declare_import(parser: Parser, _in_shell: bool) -> None:
    parser.add_argument(
        "traces",
        nargs="+",
        metavar="TRACE",
        help="torch.profiler's Kineto trace, its execution trace, or both",
    )
    parser.add_argument("--device", metavar="ID", help="what it ran on, where the trace does not say")
    parser.add_argument("--name", metavar="NAME", help="what the run is called; else the file's name")


def _declare_compare(parser: Parser, _in_shell: bool) -> None:
    parser.add_argument("before", metavar="RUN")
    parser.add_argument("after", metavar="RUN")


def _declare_report(parser: Parser, in_shell: bool) -> None:
    _declare_run(parser, in_shell)
    parser.add_argument("path", metavar="PATH", help="a .html file")


def _declare_config(parser: Parser, _in_shell: bool) -> None:
    parser.add_argument(
        "setting", nargs="?", type=pair, metavar="SETTING=VALUE", help="on or off; alone it lists them"
    )


def _declare_solve(parser: Parser, _in_shell: bool) -> None:
    parser.add_argument("problem", metavar="PROBLEM", help="a placement problem, JSON (gimlet.problem/1)")


def _declare_check(parser: Parser, in_shell: bool) -> None:
    _declare_solve(parser, in_shell)
    parser.add_argument("solution", metavar="SOLUTION", help="a placement, JSON (gimlet.solution/1)")


COMMANDS: dict[str, Command] = {
    "profile": Command(
        "profiles a cell and shows the result", _declare_profile, actions.profile, output=BOTH
    ),
    "dry": Command("runs a model without its weights", _declare_dry, actions.dry, output=BOTH),
    "devices": Command(
        "this machine's devices and what they reach", _declare_devices, actions.devices, output=NOTEBOOK
    ),
    "fleet": Command(
        "names the devices to plan for, present or not", _declare_fleet, actions.fleet, output=NOTEBOOK
    ),
    "connect": Command(
        "reaches remote devices: %%gimlet connect ray", _declare_connect, actions.connect, NOTEBOOK, NOTEBOOK
    ),
    "disconnect": Command("leaves them", _declare_nothing, actions.disconnect, NOTEBOOK),
    **{
        name: Command(summary, _declare_run, actions.viewed(name), output=NOTEBOOK)
        for name, summary in VIEWS.items()
    },
    "advise": Command("a plan, its baselines and why", _declare_advise, actions.advise, output=BOTH),
    "apply": Command("puts a plan in force", _declare_apply, actions.apply, NOTEBOOK, NOTEBOOK),
    "rollback": Command("undoes the plan in force", _declare_nothing, actions.rollback, NOTEBOOK),
    "export": Command("writes a plan or a run for other tools", _declare_export, actions.export_noun),
    "runs": Command("the runs of this notebook, and the saved ones", _declare_nothing, actions.runs),
    "save": Command("writes a run to a file", _declare_save, actions.save),
    "load": Command("reads a run or a plan from a file", _declare_load, actions.load, NOTEBOOK, NOTEBOOK),
    "import": Command(
        "makes a run of a trace of torch.profiler", _declare_import, actions.import_trace, output=BOTH
    ),
    "compare": Command("two runs, stage by stage", _declare_compare, actions.compare, output=NOTEBOOK),
    "report": Command("writes a run as one page", _declare_report, actions.report),
    "config": Command("the settings of this notebook", _declare_config, actions.config, NOTEBOOK),
    "solve": Command("solves a placement problem", _declare_solve, actions.solve, output=BOTH),
    "check": Command("judges a solution of a placement problem", _declare_check, actions.check, output=BOTH),
}
