"""Live readings in other tools' formats."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import gimlet_lab as gimlet
from gimlet_lab.errors import GimletError
from gimlet_lab.hardware.meters import Sampler
from gimlet_lab.hardware.meters.outlets import meters_to_file, meters_to_opentelemetry, prometheus_text

ROW = {"power_w": 352.5, "energy_j": 1e6, "utilization": 0.5, "dram_bytes_per_s": 2e12, "sm_clock_hz": None,
       "throttle_reasons": "power cap", "temperature_c": 61.0, "load": 0.25}  # fmt: skip


class Meter:
    name = "a"

    def open(self) -> tuple[Sequence[Any], Sequence[str]]:
        class Probe:
            devices = ("a:0",)
            cards = ()

            def read(self, _now_s: float) -> Mapping[str, Mapping[str, Any]]:
                return {"a:0": ROW}

        return [Probe()], ()


def parsed(text: str) -> dict[str, tuple[str, dict[str, str], float]]:
    return {
        sample.name: (family.type, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_reads_what_we_write() -> None:
    found = parsed(prometheus_text({"a:0": ROW}))
    device = {"device": "a:0"}
    assert found == {
        "gimlet_power_watts": ("gauge", device, 352.5),
        "gimlet_energy_joules_total": ("counter", device, 1e6),
        "gimlet_utilization_ratio": ("gauge", device, 0.5),
        "gimlet_dram_bytes_per_second": ("gauge", device, 2e12),
        "gimlet_temperature_celsius": ("gauge", device, 61.0),
        "gimlet_load": ("gauge", device, 0.25),
        "gimlet_throttled": ("gauge", {**device, "reasons": "power cap"}, 1.0),
    }
    hostile = 'x"y' + chr(92) + "z" + chr(10) + "w"
    (sample,) = parsed(prometheus_text({hostile: {"load": 1.0}})).values()
    assert sample[1] == {"device": hostile}
    assert prometheus_text({}) == ""


def test_a_file_is_kept_up_to_date_and_goes_when_nobody_writes_it(tmp_path: Path) -> None:
    path, sampler = tmp_path / "gimlet.prom", Sampler(lambda: [Meter()])
    with meters_to_file(path, 0.005, sampler):
        first = path.stat().st_ino
        assert "gimlet_power_watts" in parsed(path.read_text())
        waiting = threading.Event()
        for _ in range(2000):
            if path.exists() and path.stat().st_ino != first:
                break
            waiting.wait(0.005)
        assert path.stat().st_ino != first
    assert list(tmp_path.iterdir()) == []
    assert sampler.notes == []
    with pytest.raises(GimletError, match="cannot write"):
        meters_to_file(tmp_path / "not" / "there", sampler=sampler)
    assert sampler._subscriptions == []


def test_readings_of_now() -> None:
    now = gimlet.read_meters()
    assert now["cpu"]["memory_total_bytes"] > 1e8
    assert gimlet.read_meters(Sampler(lambda: [Meter()])) == {"a:0": ROW}


def test_opentelemetry_observes_by_the_users_provider() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="no opentelemetry-sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    sampler = Sampler(lambda: [Meter()])
    with meters_to_opentelemetry(MeterProvider([reader]), 0.01, sampler):
        points = {
            metric.name: (metric.unit, point.value, dict(point.attributes))
            for resource in reader.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }
    assert points["gimlet.power_watts"] == ("W", 352.5, {"device": "a:0"})
    assert points["gimlet.energy_joules"] == ("J", 1e6, {"device": "a:0"})
    assert points["gimlet.throttled"][1:] == (1, {"device": "a:0", "reasons": "power cap"})
    assert "gimlet.sm_clock_hertz" not in points
    assert reader.get_metrics_data() is None  # closed


def test_without_opentelemetry_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(GimletError, match="pip install opentelemetry-sdk"):
        meters_to_opentelemetry(sampler=Sampler(list))
