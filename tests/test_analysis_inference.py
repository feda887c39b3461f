"""Operators of calls that nobody looked at."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import Tape, device

from gimlet_lab.analysis import analyse
from gimlet_lab.model import Work
from gimlet_lab.work import formulas

SHAPE = {"batch": 1, "q_len": 1, "heads": 8, "kv_heads": 2, "head_dim": 64}


def attention(kv_len: int) -> Work:
    return Work.of("attention_decode", **SHAPE, kv_len=kv_len)


def decode(tape: Tape, past: int, *, looked: bool, layers: int = 2) -> None:
    with tape.module("llm", "decode", q_len=1, past_len=past, looked=looked):
        if not looked:
            tape.run(0.01 * layers)
            return
        for layer in range(layers):
            gemm = Work.of("gemm", m=1, n=64, k=64)
            tape.op(0.006, flops=formulas.flops(gemm), moved=formulas.bytes_read(gemm), work=gemm,
                    module=f"layers.{layer}")  # fmt: skip
            work = attention(past + 1)
            tape.op(0.004, flops=formulas.flops(work), moved=formulas.bytes_read(work), work=work,
                    name="aten::sdpa", module=f"layers.{layer}", kv=float(past + 1))  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 200), st.integers(1, 15), st.integers(1, 15))
def test_sums_over_a_decode_loop_are_exact_from_two_looks(past, before, after):
    tape = Tape()
    steps = list(range(past, past + before + after + 2))
    looks = {steps[0], steps[before]}
    for step in steps:
        decode(tape, step, looked=step in looks)
    found = analyse(tape.recording(), device())
    stage = found.graph["decode"]
    truth = sum(2 * (formulas.flops(attention(step + 1)) or 0) for step in steps)
    truth += 2 * len(steps) * (formulas.flops(Work.of("gemm", m=1, n=64, k=64)) or 0)
    assert stage.flops == pytest.approx(truth)
    assert stage.ops == 4 * len(steps)
    counted = sum(work.count for work in stage.works)
    assert counted == stage.ops
    kv = sum(op.kv_bytes for op in found.operators)
    assert kv == pytest.approx(sum(2 * (step + 1) for step in steps))


def test_one_look_is_enough_where_the_work_says_what_grows():
    tape = Tape()
    decode(tape, 10, looked=True)
    for past in range(11, 21):
        decode(tape, past, looked=False)
    stage = analyse(tape.recording(), device()).graph["decode"]
    works = {work["kv_len"]: work.count for work in stage.works if work.op == "attention_decode"}
    assert works == {11: 2, 16: 20}, "ten calls at their mean length, 15.5 past tokens and the new one"
    truth = sum(2 * (formulas.bytes_read(attention(past + 1)) or 0) for past in range(10, 21))
    gemm = 11 * 2 * (formulas.bytes_read(Work.of("gemm", m=1, n=64, k=64)) or 0)
    assert stage.bytes_read == pytest.approx(truth + gemm, rel=0.01)


def test_a_long_loop_stays_a_few_rows_and_they_say_they_are_inferred():
    tape = Tape()
    for past in range(10, 210):
        decode(tape, past, looked=past in (10, 20, 40, 80))
    found = analyse(tape.recording(), device())
    assert len(found.operators) == 4 * 4 + 4 * 4
    assert sum(found.inferred) == 16
    assert set(found.stage_of) == {"decode"}
    starts = [op.start_s for op in found.operators]
    assert starts == sorted(starts)


def test_inferred_rows_last_as_long_as_the_calls_they_stand_for():
    tape = Tape()
    decode(tape, 10, looked=True)
    for past in range(11, 31):
        decode(tape, past, looked=False)
    found = analyse(tape.recording(), device())
    inferred = sum(op.duration_s for op, flag in zip(found.operators, found.inferred, strict=True) if flag)
    assert inferred == pytest.approx(20 * 0.02)


def test_calls_of_another_signature_are_not_guessed():
    tape = Tape()
    with tape.module("llm", "prefill", q_len=8, past_len=0, looked=True):
        tape.op(0.1, flops=1e9)
    with tape.module("llm", "prefill", q_len=64, past_len=0):
        tape.run(0.4)
    found = analyse(tape.recording(), device())
    assert len(found.operators) == 1
    assert found.graph["prefill"].flops is None, "the longer one may have done anything"


def test_unknown_work_stays_unknown():
    tape = Tape()
    with tape.module("net", looked=True):
        tape.op(0.1, flops=None, moved=None, name="custom::thing")
    with tape.module("net"):
        tape.run(0.1)
    stage = analyse(tape.recording(), device()).graph["net"]
    assert (stage.flops, stage.bytes_read, stage.ops) == (None, None, 2)
