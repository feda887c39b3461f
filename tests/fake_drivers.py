"""Drivers without devices: small C libraries that answer what the vendors' own Python bindings ask.

The bindings run as they are, in a process of their own that finds these libraries by ``LD_LIBRARY_PATH``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent / "drivers"
ROOT = Path(__file__).parents[1]

#: Where AMD's binding is, beside the environment: `make setup` puts it there, no other program may see it.
AMDSMI = Path(os.environ.get("GIMLET_LAB_AMDSMI", Path(sys.prefix) / "amd"))

NO_COMPILER = "no C compiler: the vendors' libraries cannot be stood in for"
NO_AMDSMI = f"no amdsmi in {AMDSMI}: make setup puts it there"


def compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def has_amdsmi() -> bool:
    return (AMDSMI / "amdsmi" / "amdsmi_wrapper.py").is_file()


@functools.cache
def library_folder() -> Path:
    """The folder with ``nvidia/libnvidia-ml.so.1`` and ``amd/libamd_smi.so``, built once."""
    sources = [*sorted(SOURCES.glob("*.[ch]")), Path(__file__)]
    key = hashlib.sha256(b"".join(source.read_bytes() for source in sources) + str(has_amdsmi()).encode())
    folder = Path(tempfile.gettempdir()) / f"gimlet-drivers-{os.getuid()}-{key.hexdigest()[:12]}"
    if not folder.exists():
        made = Path(tempfile.mkdtemp(prefix="gimlet-drivers-"))
        _compile("nvml.c", made / "nvidia" / "libnvidia-ml.so.1")
        if has_amdsmi():
            _compile("amdsmi.c", made / "amd" / "libamd_smi.so")
            _compile("nvml.c", made / "torn" / "libamd_smi.so")  # a library, but not the one it says it is
        made.rename(folder)
    return folder


def _compile(source: str, target: Path) -> None:
    target.parent.mkdir()
    stubs = _stubs(source)
    (target.parent / source.replace(".c", "_stubs.h")).write_text(stubs, encoding="utf-8")
    command = [str(compiler()), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{target.name}"]
    command += [f"-I{target.parent}", "-o", str(target), str(SOURCES / source), "-lm"]
    subprocess.run(command, check=True)


def _stubs(source: str) -> str:
    """Every function that the binding knows and the source has not: they say that they are not supported."""
    if source == "amdsmi.c":
        text = (AMDSMI / "amdsmi" / "amdsmi_wrapper.py").read_text(encoding="utf-8")
        wanted = set(re.findall(r"_libraries\['libamd_smi\.so'\]\.(\w+)", text))
    else:
        text = Path(str(importlib.util.find_spec("pynvml").origin)).read_text(encoding="utf-8")
        wanted = set(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"\)', text))
    ours = set(re.findall(r"^(?:int |EXPORT\()(\w+)\)?\(", (SOURCES / source).read_text(), re.MULTILINE))
    return "".join(f"int {name}(void) {{ return UNSUPPORTED; }}\n" for name in sorted(wanted - ours))


def environment(
    nvidia: str | None = None, amd: str | None = None, faults: str = "", **more: str
) -> dict[str, str]:
    """The environment of a process that has these devices, with faults in one vendor's library.

    Parameters
    ----------
    nvidia, amd : str, optional
        Options of the vendor's library; where left out, the library is not there.
    faults : str
        See ``drivers/faults.h``; for NVIDIA's, where both are there.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "ROC", "HIP_"))}
    paths, libraries = [str(ROOT)], []
    if amd is not None:
        own |= {"FAKE_AMDSMI": amd, "FAKE_AMDSMI_FAULTS": faults if nvidia is None else ""}
        paths.append(str(AMDSMI))
        libraries.append(str(library_folder() / ("torn" if "torn=1" in amd else "amd")))
    if nvidia is not None:
        own |= {"FAKE_NVML": nvidia, "FAKE_NVML_FAULTS": faults}
        libraries.append(str(library_folder() / "nvidia"))
    own["PYTHONPATH"] = os.pathsep.join(paths)
    own["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    return own | more


def run(code: str, own: dict[str, str], *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a program in such an environment."""
    command = [sys.executable, "-P", "-c", code, *args]
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=timeout, check=False)


#: Reads all meters for a while and prints what a run would keep.
WATCH = """
import json, sys, time
from gimlet_lab.hardware.meters import Record, Sampler

seconds, interval, deadline = map(float, sys.argv[1:4])
sampler, record = Sampler(deadline_s=deadline), Record()
began = time.perf_counter()
with sampler.subscribe(interval, record.add):
    started = time.perf_counter()
    time.sleep(seconds)
print(json.dumps({
    "series": {one.device: one.to_json() for one in record.series(started)},
    "notes": sampler.notes,
    "waited_s": started - began,
}))
"""


def watch(
    own: dict[str, str], seconds: float = 0.4, interval: float = 0.02, deadline: float = 0.2
) -> dict[str, Any]:
    """What a process saw of its devices' meters; fails where it printed or raised anything of its own."""
    done = run(WATCH, own, str(seconds), str(interval), str(deadline))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    return {**json.loads(lines[-1]), "printed": lines[:-1]}
