from __future__ import annotations

import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlet_lab.capture.waits import Reading, Sampler, samples

linux = pytest.mark.skipif(sys.platform != "linux", reason="the scheduler's account is Linux's")
moment = st.tuples(*(st.floats(0, 10, allow_nan=False) for _ in range(4)))


@given(st.lists(moment, max_size=20))
def test_samples_are_contiguous_and_add_up(moments: list[tuple[float, float, float, float]]) -> None:
    found = samples([Reading(*values) for values in moments])
    times = sorted({values[0] for values in moments})
    assert [s.start_s for s in found] == times[:-1]
    for sample, end in zip(found, times[1:], strict=True):
        parts = (sample.running_s, sample.runnable_s, sample.blocked_s)
        assert sum(parts) == pytest.approx(sample.duration_s) == pytest.approx(end - sample.start_s)
        assert min(*parts, sample.others_s) >= 0


def watched(work: object) -> tuple[float, float, float, float]:
    """Shares of the time that the work ran, wanted a core, slept; and what others ran, by the same time."""
    zero = time.perf_counter()
    sampler = Sampler(lambda: time.perf_counter() - zero)
    sampler.start()
    work()  # type: ignore[operator]
    found = sampler.stop()
    total = sum(s.duration_s for s in found)
    assert found[0].start_s + total == pytest.approx(found[-1].start_s + found[-1].duration_s)
    return tuple(  # type: ignore[return-value]
        sum(getattr(s, name) for s in found) / total
        for name in ("running_s", "runnable_s", "blocked_s", "others_s")
    )


def spin(seconds: float = 0.15) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


@linux
def test_sleep_is_sleep() -> None:
    running, runnable, blocked, _ = watched(lambda: time.sleep(0.15))
    assert blocked > 0.9 - runnable
    assert running < 0.1


@linux
def test_work_is_no_sleep() -> None:
    running, runnable, blocked, _ = watched(spin)
    # On a busy machine it wants a core as long as it has one; what it does not do is sleep.
    assert running + runnable > 0.9
    assert blocked < 0.1


@linux
def test_work_of_other_threads_is_told_from_idling() -> None:
    def wait_for_another() -> None:
        import hashlib

        def work() -> None:  # lets go of the interpreter, as a numeric library does
            until = time.thread_time() + 0.15
            while time.thread_time() < until:
                hashlib.sha256(b"x" * (1 << 22))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    running, _, blocked, others = watched(wait_for_another)
    assert blocked > 0.5
    assert others > 2 * running


def test_a_machine_without_proc_says_what_it_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def refuse(*_args: object, **_kwargs: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", refuse)
    sampler = Sampler(time.perf_counter)
    sampler.start()
    found = sampler.stop()
    assert found
    assert all(s.runnable_s == 0 for s in found)
    assert len(sampler.notes) == 1


def test_a_thread_that_has_ended_does_nothing_any_more() -> None:
    sampler = Sampler(time.perf_counter)
    thread = threading.Thread(target=sampler.start)
    thread.start()
    thread.join()
    deadline = time.monotonic() + 10
    while threading.get_native_id() and not sampler_has_run(sampler) and time.monotonic() < deadline:
        pass
    assert sampler.stop()


def sampler_has_run(sampler: Sampler) -> bool:
    return sampler.cpu_s > 0


def test_long_runs_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    from gimlet_lab.capture import waits

    monkeypatch.setattr(waits, "MAX_READINGS", 8)
    monkeypatch.setattr(waits, "INTERVAL_S", 0.0001)
    sampler = Sampler(time.perf_counter)
    sampler.start()
    deadline = time.monotonic() + 10
    while sampler.interval_s < 0.0008 and time.monotonic() < deadline:
        time.sleep(0)
    assert len(sampler.stop()) < 200
