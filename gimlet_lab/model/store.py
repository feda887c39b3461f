"""Runs on disk: one file ``NAME.gimlet``, written in one step, checked when read.

The file is a zip of JSON. ``manifest.json`` names the schema, the writer and the SHA-256 of every other
member; ``run.json`` holds what is not a column; ``operators.json``, ``spans.json``, ``phases.json`` and
``stacks.json`` hold columns (a list per field, long ones as bytes; strings by their number in a table of the
file); ``meters.json`` holds each device's readings in columns; ``display.json`` is the display form, which a
page draws without a kernel.

Numbers that JSON has no word for (not a number, infinity) are kept as ``{"$float": "nan"}``; in the display
form, which other programs read, they are ``null``: unknown.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from gimlet_lab.errors import GimletError, RunFileError
from gimlet_lab.model.columns import dumps, loads, pack, plain, unpack
from gimlet_lab.model.device import Device
from gimlet_lab.model.estimate import Estimate
from gimlet_lab.model.graph import Graph
from gimlet_lab.model.meters import MeterSeries
from gimlet_lab.model.phase import Phase
from gimlet_lab.model.recording import ModuleInfo, Op, Span
from gimlet_lab.model.run import SCHEMA, Run
from gimlet_lab.model.stacks import Stacks, StackSample

SUFFIX = ".gimlet"
MEMBERS = ("run.json", "operators.json", "spans.json", "phases.json", "display.json")
#: Of later versions: a file without one is whole.
LATER_MEMBERS = ("meters.json", "stacks.json")
#: The largest member that is read: a run of a million operators takes about 110 MB.
MAX_MEMBER_BYTES = 512 * 2**20
_MAX_MANIFEST_BYTES = 2**20

#: zlib's quickest: columns of times are noise to it, and the others small.
_LEVEL = 1


def save(run: Run, path: str | Path) -> Path:
    """Write a run to one file, atomically: readers see the old file or the new one, never a part.

    Parameters
    ----------
    run : Run
    path : str or Path
        ``.gimlet`` is added where it has no suffix.

    Returns
    -------
    Path
        Where it is.

    Raises
    ------
    GimletError
        If the place cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from gimlet_lab.model import Device, Run
    >>> run = Run("r", "ok", None, "2026-01-01T00:00:00Z", 1.0, 0.0, Device("cpu", "CPU", "", "cpu"), {})
    >>> load(save(run, tempfile.mkdtemp() + "/mine")) == run
    True
    """
    path = Path(path)
    if not path.suffix:
        path = path.with_name(path.name + SUFFIX)
    return write_atomic(path, _encode(run))


def load(path: str | Path) -> Run:
    """Read a run, all of it or nothing.

    Raises
    ------
    RunFileError
        If there is no such file, or it is cut short, damaged, of another kind or of a newer version.
    """
    path = Path(path)
    if not path.suffix and not path.exists():
        path = path.with_name(path.name + SUFFIX)
    try:
        with path.open("rb") as file:
            return _decode(file.read(), str(path))
    except FileNotFoundError:
        raise RunFileError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise RunFileError(f"{path}: is a folder, not a run file") from None
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read: {error.strerror or error}") from None


def write_atomic(path: str | Path, data: bytes) -> Path:
    """Write a whole file or nothing: a temporary file beside it, flushed to the disk, takes its name.

    Raises
    ------
    GimletError
        If the place cannot be written.
    """
    path = Path(path)
    target = path.resolve()  # through a link, the file it points to is replaced and the link stays
    temporary = target.parent / f".gimlet-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        # Not tempfile: its files are private, and the umask would be lost with the rename.
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise GimletError(f"cannot write {path}: {error.strerror or error}") from None
        raise
    return path


def writer() -> str:
    """Name and version of this program."""
    try:
        return "gimlet_lab " + importlib.metadata.version("gimlet-lab")
    except importlib.metadata.PackageNotFoundError:
        return "gimlet_lab (not installed)"


# --- encoding ---


def _encode(run: Run) -> bytes:
    samples = pack(run.sampled.samples, StackSample, {})
    operators = pack(run.operators, Op, {"inferred": run.inferred, "stage": run.stage_of})
    head = {
        "name": run.name,
        "status": run.status,
        "error": run.error,
        "started": run.started,
        "duration_s": run.duration_s,
        "overhead_s": run.overhead_s,
        "device": run.device.to_json(),
        "environment": run.environment,
        "span_stage": {str(span): stage for span, stage in run.span_stage.items()},
        "graph": run.graph.to_json(),
        "modules": [asdict(module) for module in run.modules],
        "min_phase_s": run.min_phase_s,
        "notes": run.notes,
        "deployment": run.deployment,
        "transferred_bytes": run.transferred_bytes,
        "predicted": {stage: estimate.to_json() for stage, estimate in run.predicted.items()},
        "text": run.text,
        "dry": run.dry,
    }
    members = {
        "run.json": dumps(head),
        "operators.json": dumps(operators),
        "spans.json": dumps(pack(run.span_list, Span, {})),
        "phases.json": dumps(pack(run.phase_list, Phase, {})),
        "stacks.json": dumps({**run.sampled.to_json(), "samples": samples}),
        "meters.json": dumps([series.to_json() for series in run.meter_list]),
        "display.json": dumps(plain(run.display, not_finite=lambda _: None)),
    }
    manifest = {
        "schema": SCHEMA,
        "writer": writer(),
        "members": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in members.items()
        },
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {"manifest.json": dumps(manifest), **members}.items():
            # A fixed date: the same run is the same bytes.
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data, compresslevel=_LEVEL)
    return buffer.getvalue()


# --- decoding ---


def _decode(data: bytes, path: str) -> Run:
    if not data:
        raise RunFileError(f"{path}: is empty, not a run")
    if not data.startswith(b"PK"):
        raise RunFileError(f"{path}: is not a run file (a run is a zip that gimlet wrote)")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            manifest = _manifest(archive, path)
            members = manifest.get("members")
            later = [name for name in LATER_MEMBERS if isinstance(members, dict) and name in members]
            contents = {name: _member(archive, name, manifest, path) for name in (*MEMBERS, *later)}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise RunFileError(f"{path}: is cut short or damaged ({_line(error)})") from None
    try:
        return _run(contents)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RunFileError(
            f"{path}: is not a whole run ({type(error).__name__}: {_line(error)}); written by {_of(manifest)}"
        ) from None


def _manifest(archive: zipfile.ZipFile, path: str) -> dict[str, Any]:
    try:
        manifest = json.loads(_read(archive, "manifest.json", _MAX_MANIFEST_BYTES, path))
        schema = manifest["schema"]
        kind, _, version = schema.partition("/")
        number = int(version)
    except KeyError:
        raise RunFileError(f"{path}: is a zip of another kind, not a run (it has no manifest)") from None
    except (TypeError, ValueError, AttributeError, RecursionError):
        raise RunFileError(f"{path}: is a zip of another kind, not a run") from None
    ours_kind, _, ours_version = SCHEMA.partition("/")
    if kind != ours_kind:
        raise RunFileError(f"{path}: holds a {kind[:60]!r}, not a {ours_kind!r}")
    if number > int(ours_version):
        raise RunFileError(
            f"{path}: is of version {number} (written by {_of(manifest)}); this is {writer()}, "
            f"which reads up to version {ours_version}: upgrade gimlet_lab to open it"
        )
    return dict(manifest)


def _member(archive: zipfile.ZipFile, name: str, manifest: Mapping[str, Any], path: str) -> Any:
    try:
        data = _read(archive, name, MAX_MEMBER_BYTES, path)
        promised = manifest["members"][name]["sha256"]
    except (KeyError, TypeError):
        raise RunFileError(f"{path}: is not whole: {name} is missing") from None
    if hashlib.sha256(data).hexdigest() != promised:
        raise RunFileError(f"{path}: is damaged: the checksum of {name} is wrong")
    try:
        return loads(data)
    except (ValueError, RecursionError):
        raise RunFileError(f"{path}: is damaged: {name} is not JSON") from None


def _read(archive: zipfile.ZipFile, name: str, limit: int, path: str) -> bytes:
    # The size in the zip's directory may lie, so what is read is limited too.
    with archive.open(name) as member:
        data = member.read(limit + 1)
    if len(data) > limit:
        raise RunFileError(f"{path}: {name} is larger than a run can be ({limit / 2**20:.0f} MiB)")
    return data


def _of(manifest: Mapping[str, Any]) -> str:
    return str(manifest.get("writer", "an unknown writer"))[:80]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


def _run(contents: Mapping[str, Any]) -> Run:
    head = contents["run.json"]
    operators, beside = unpack(contents["operators.json"], Op, ("inferred", "stage"))
    spans, _ = unpack(contents["spans.json"], Span, ())
    phases, _ = unpack(contents["phases.json"], Phase, ())
    known = {f.name for f in fields(Run)}
    return Run(
        **{
            **{name: value for name, value in head.items() if name in known},
            "device": Device.from_json(head["device"]),
            "operators": operators,
            "inferred": tuple(map(bool, beside["inferred"])),
            "stage_of": tuple(beside["stage"]),
            "span_list": spans,
            "span_stage": {int(span): stage for span, stage in head["span_stage"].items()},
            "phase_list": phases,
            "graph": Graph.from_json(head["graph"]),
            "modules": tuple(_module(entry) for entry in head["modules"]),
            "notes": tuple(head["notes"]),
            "sampled": _stacks(contents.get("stacks.json")),
            "meter_list": tuple(MeterSeries.from_json(entry) for entry in contents.get("meters.json", ())),
            "predicted": {stage: Estimate.from_json(one) for stage, one in head.get("predicted", {}).items()},
            "display": contents["display.json"],
        }
    )


def _stacks(packed: Mapping[str, Any] | None) -> Stacks:
    if packed is None:
        return Stacks()
    samples, _ = unpack(packed["samples"], StackSample, ())
    return Stacks.from_json(packed, samples)


def _module(entry: Mapping[str, Any]) -> ModuleInfo:
    known = {f.name for f in fields(ModuleInfo)}
    return ModuleInfo(**{name: value for name, value in entry.items() if name in known})
