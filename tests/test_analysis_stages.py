"""Stages: which spans make one, what it is called, how long its calls take, how often the loop came by."""

from __future__ import annotations

import pytest
from recordings import Tape, device

from gimlet_lab.analysis import Analysis, analyse
from gimlet_lab.model import ModuleInfo


def done(tape: Tape, **more: object) -> Analysis:
    return analyse(tape.recording(**more), device())  # type: ignore[arg-type]


def ids(analysis: Analysis) -> list[str]:
    return [stage.id for stage in analysis.graph.stages]


def test_an_agent_has_a_stage_for_each_module_in_its_role_and_for_each_function():
    tape = Tape()
    with tape.function("agent"):
        with tape.function("encode"), tape.module("embedder", "embed"):
            tape.run(0.05)
        with tape.function("search"):
            tape.run(0.02)
        with tape.function("answer"):
            with tape.module("llm", "prefill", q_len=8, past_len=0):
                tape.run(0.3)
            for step in range(4):
                with tape.module("llm", "decode", q_len=1, past_len=8 + step):
                    tape.run(0.1)
    found = done(tape)
    assert ids(found) == ["embed", "search", "prefill", "decode"]
    assert [stage.kind for stage in found.graph.stages] == ["module", "function", "module", "module"]
    assert found.graph["decode"].calls == 4
    assert found.graph["decode"].role == "decode"
    assert found.graph["decode"].call_s == pytest.approx(0.1)
    assert {found.span_stage.get(span) for span in (0, 1, 2)} == {None}


def test_two_models_in_one_role_are_told_apart_by_their_names():
    tape = Tape()
    for target in ("draft", "llm"):
        with tape.module(target, "prefill", q_len=8, past_len=0):
            tape.run(0.1)
    with tape.module("ranker"):
        tape.run(0.1)
    assert ids(done(tape)) == ["prefill:draft", "prefill:llm", "ranker"]


def test_a_function_and_a_module_of_one_name_stay_two_stages():
    tape = Tape()
    with tape.module("embedder", "embed"):
        tape.run(0.1)
    with tape.function("embed"):
        tape.run(0.1)
    assert ids(done(tape)) == ["embed", "embed:2"]


def test_a_function_is_placed_with_all_that_it_calls():
    tape = Tape()
    with tape.function("search"):
        tape.run(0.01)
        with tape.function("normalise"):
            tape.run(0.05)
        with tape.function("search.<locals>.key", target=None):
            tape.run(0.01)
    with tape.function("other"):
        tape.run(0.05)
    found = done(tape)
    assert ids(found) == ["search", "other"]
    assert found.graph["search"].call_s == pytest.approx(0.07)
    assert found.span_stage[2] == found.span_stage[3] == "search"


def test_a_declared_function_is_a_stage_wherever_it_is_called():
    tape = Tape()
    with tape.function("search"):
        tape.run(0.05)
        with tape.function("rerank"):
            tape.run(1e-5)
    with tape.function("other"):
        tape.run(0.05)
    found = done(tape, declared={"rerank": {"name": "reorder", "pure": True, "idempotent": False}})
    assert "reorder" in ids(found)
    assert found.graph["reorder"].pure
    assert not found.graph["reorder"].idempotent
    assert "search" not in ids(found), "what is left of search is glue"


def test_the_function_that_is_the_whole_program_is_no_stage():
    """An agent without a model: tools and an API."""
    tape = Tape()
    with tape.function("agent"):
        with tape.function("ask_api"):
            tape.wait(0.5)
        with tape.function("compute"):
            tape.run(0.3)
    found = done(tape)
    assert ids(found) == ["ask_api", "compute"]
    assert [stage.bound for stage in found.graph.stages] == ["wait", "overhead"]


def test_tiny_functions_are_glue_unless_they_add_up():
    tape = Tape()
    for _ in range(3):
        with tape.function("shout"):
            tape.run(2e-5)
    with tape.function("work"):
        tape.run(0.1)
    assert ids(done(tape)) == ["work"]
    for _ in range(2000):
        with tape.function("often"):
            tape.run(5e-5)
    assert ids(done(tape)) == ["work", "often"]


def test_python_between_stages_is_a_stage_on_the_host_where_it_counts():
    tape = Tape()
    tape.run(0.05)
    with tape.function("work"):
        tape.run(0.1)
    tape.run(0.03)
    found = done(tape)
    assert ids(found) == ["python", "work"]
    glue = found.graph["python"]
    assert glue.kind == "glue"
    assert glue.total_s == pytest.approx(0.08)
    assert [(e.src, e.dst, e.known) for e in found.graph.edges] == [
        ("python", "work", "order"),
    ] or found.graph.edges[0].known == "order"


def test_operators_of_the_cell_itself_are_the_stage_cell():
    tape = Tape()
    tape.op(0.1, flops=9e9)
    found = done(tape)
    assert ids(found) == ["cell"]
    assert found.graph["cell"].bound == "compute"
    assert found.graph["cell"].flops == 9e9
    assert found.stage_of == ("cell",)


def test_an_empty_cell_has_one_stage_and_no_phase():
    found = done(Tape())
    assert ids(found) == ["cell"]
    assert found.phases == ()


def test_call_time_leaves_out_looks_and_the_first_touch():
    tape = Tape()
    with tape.module("llm", "decode", q_len=1, past_len=8, looked=True, look_overhead_s=0.2):
        tape.op(0.5, moved=5e9)
        tape.run(0.2)
    for step in range(5):
        with tape.module("llm", "decode", q_len=1, past_len=9 + step):
            tape.run(0.1)
    with tape.module("llm", "decode", q_len=1, past_len=14, looked=True, look_overhead_s=0.2):
        tape.op(0.1, moved=1e9)
        tape.run(0.2)
    stage = done(tape).graph["decode"]
    assert stage.calls == 7
    assert stage.call_s == pytest.approx(0.1)
    assert stage.total_s == pytest.approx(0.7)
    assert stage.warmup_s == pytest.approx(0.4), "0.7 s less 0.2 s of looking less the usual 0.1 s"


def test_one_slow_call_of_a_function_between_two_is_no_warmup():
    tape = Tape()
    for seconds in (0.3, 0.1):
        with tape.function("tool"):
            tape.run(seconds)
    assert done(tape).graph["tool"].warmup_s == 0.0


@pytest.mark.parametrize("second_past", [8, 30])
def test_a_cache_that_does_not_go_on_begins_a_turn(second_past):
    tape = Tape()
    for start in (8, second_past):
        with tape.module("llm", "prefill", q_len=start, past_len=0):
            tape.run(0.1)
        for step in range(3):
            with tape.module(
                "llm", "decode", q_len=1, past_len=start + step, kv_bytes=100.0 * (start + step + 1)
            ):
                tape.run(0.1)
    graph = done(tape).graph
    assert (graph["prefill"].turns, graph["decode"].turns) == (2, 2)
    assert graph["decode"].state_bytes == 100 * (second_past + 3)


def test_chunks_of_one_prompt_are_one_turn():
    tape = Tape()
    for past in (0, 8, 16):
        with tape.module("llm", "prefill", q_len=8, past_len=past):
            tape.run(0.1)
    assert done(tape).graph["prefill"].turns == 1


def test_turns_of_functions_are_counted_at_the_loop_that_calls_them():
    tape = Tape()
    with tape.function("agent"):
        for _ in range(3):
            with tape.function("think"):
                for _ in range(4):
                    with tape.function("tool"):
                        tape.run(0.02)
                with tape.module("llm"):
                    tape.run(0.1)
    graph = done(tape).graph
    assert (graph["tool"].calls, graph["tool"].turns) == (12, 3)
    assert graph["llm"].turns == 3


def test_prefill_and_decode_share_their_weights_by_name():
    tape = Tape()
    with tape.module("llm", "prefill", q_len=8, past_len=0):
        tape.run(0.1)
    with tape.module("llm", "decode", q_len=1, past_len=8):
        tape.run(0.1)
    with tape.module("ranker"):
        tape.run(0.1)
    modules = (
        ModuleInfo("llm", "Llama", {"model.layers.0": 100, "lm_head": 50}, "float32", "cpu"),
        ModuleInfo("ranker", "Bert", {"ranker.model.layers.0": 7}, "float32", "cpu"),
    )
    graph = done(tape, modules=modules).graph
    assert (
        graph["prefill"].weights == graph["decode"].weights == {"llm.model.layers.0": 100, "llm.lm_head": 50}
    )
    assert graph["ranker"].weights == {"ranker.model.layers.0": 7}
    assert graph["decode"].device == "cpu"


def test_stages_of_a_cell_under_a_plan_keep_the_plans_names_and_bounds():
    tape = Tape()
    placed = {"device": "cpu/1", "bound": "bandwidth", "stage": "decode"}
    for _ in range(3):
        with tape.module("llm", "decode", q_len=1, past_len=8, **placed):
            tape.wait(0.1)
    found = done(tape)
    stage = found.graph["decode"]
    assert (stage.device, stage.bound) == ("cpu/1", "bandwidth")
    assert [phase.bound for phase in found.phases] == ["bandwidth"]
