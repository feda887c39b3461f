"""Options and fixtures of all tests.

``--backend NAME`` runs the tests that every backend has to pass on another one: an entry point of
``gimlet_lab.backends`` whose ``connect`` brings the slices of this machine, ``cpu/0`` and ``cpu/1``.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Iterator

import pytest

from gimlet_lab.backends import Backend, backend

# Ray reads once, when it is loaded, how to guard its clusters.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", action="append", help="for the tests of all backends; local and ray")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "placer" in metafunc.fixturenames:
        names = metafunc.config.getoption("--backend") or ["local", "ray"]
        marks = {"ray": [pytest.mark.cluster]}
        given = [pytest.param(name, id=name, marks=marks.get(name, [])) for name in names]
        metafunc.parametrize("placer", given, indirect=True, scope="module")


@pytest.fixture(scope="module")
def placer(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A backend that is connected."""
    if request.param == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("no Ray: pip install 'gimlet-lab[ray]'")
    chosen = backend(request.param)
    chosen.connect()
    yield chosen
    chosen.disconnect()
