"""Edges: what was seen, what the text says, and the order that is left."""

from __future__ import annotations

from textwrap import dedent

import networkx
import pytest
from recordings import Tape, device

from gimlet_lab.analysis import Analysis, analyse
from gimlet_lab.model import Edge, Graph

CELL = "<cell>"


def done(tape: Tape, **more: object) -> Analysis:
    return analyse(tape.recording(**more), device())  # type: ignore[arg-type]


def told(graph: Graph) -> dict[tuple[str, str], str]:
    return {(edge.src, edge.dst): edge.known for edge in graph.edges if not edge.back}


def between(graph: Graph, src: str, dst: str) -> Edge:
    (edge,) = [edge for edge in graph.edges if (edge.src, edge.dst) == (src, dst)]
    return edge


def is_acyclic(graph: Graph) -> bool:
    forward = networkx.DiGraph([(edge.src, edge.dst) for edge in graph.edges if not edge.back])
    return networkx.is_directed_acyclic_graph(forward)


# -- what capture saw ------------------------------------------------------------------------------------


def generate(tape: Tape, prompt: int, tokens: int) -> None:
    """Prefill and decode: each step reads the cache that the step before wrote."""
    with tape.module("llm", "prefill", q_len=prompt, past_len=0) as before:
        tape.run(0.1)
    for step in range(tokens):
        with tape.module("llm", "decode", q_len=1, past_len=prompt + step) as span:
            tape.move(before, span, "past_key_values", size=100.0 * (prompt + step), kind="kv")
            tape.run(0.05)
        before = span


def test_the_kv_cache_crosses_once_a_turn_however_many_tokens_follow():
    tape = Tape()
    generate(tape, 8, 5)
    generate(tape, 12, 3)
    edge = between(done(tape).graph, "prefill", "decode")
    assert (edge.tensor, edge.known, edge.calls, edge.back) == ("past_key_values", "tensor", 2, False)
    assert edge.bytes == pytest.approx((800 + 1200) / 2)


def test_layers_of_one_cache_are_one_crossing_of_all_their_bytes():
    tape = Tape()
    with tape.module("llm", "prefill", q_len=8, past_len=0) as prefill:
        tape.run(0.1)
    for past in (8, 9):
        with tape.module("llm", "decode", q_len=1, past_len=past) as span:
            for layer in range(4):
                tape.move(prefill, span, "past_key_values", size=25.0, kind="kv", key=f"layer{layer}")
            tape.run(0.05)
    edge = between(done(tape).graph, "prefill", "decode")
    assert (edge.bytes, edge.calls) == (100.0, 1), "read again where it already is"


def test_one_tensor_read_by_two_stages_under_two_names_has_one_name():
    tape = Tape()
    with tape.function("make") as make:
        tape.run(0.05)
    for reader, name in (("left", "x"), ("right", "features")):
        with tape.function(reader) as span:
            tape.move(make, span, name, key="the tensor")
            tape.run(0.05)
    graph = done(tape).graph
    assert between(graph, "make", "left").tensor == between(graph, "make", "right").tensor == "x"


def test_two_tensors_of_one_source_have_two_names():
    tape = Tape()
    with tape.function("make") as make:
        tape.run(0.05)
    for reader in ("left", "right"):
        with tape.function(reader) as span:
            tape.move(make, span, "x", key=f"for {reader}")
            tape.run(0.05)
    graph = done(tape).graph
    assert between(graph, "make", "left").tensor != between(graph, "make", "right").tensor


def test_a_size_nobody_knows_is_none():
    tape = Tape()
    with tape.function("make") as make:
        tape.run(0.05)
    with tape.function("use") as use:
        tape.move(make, use, "thing", size=None, known="object")
        tape.run(0.05)
    edge = between(done(tape).graph, "make", "use")
    assert (edge.bytes, edge.known) == (None, "object")


def test_data_that_goes_to_the_next_turn_is_a_back_edge_and_the_rest_has_no_cycle():
    tape = Tape()
    before = None
    for _ in range(3):
        with tape.function("plan") as plan:
            if before is not None:
                tape.move(before, plan, "notes", known="object")
            tape.run(0.05)
        with tape.function("act") as act:
            tape.move(plan, act, "step", known="object")
            tape.run(0.05)
        before = act
    graph = done(tape).graph
    assert is_acyclic(graph)
    back = between(graph, "act", "plan")
    assert (back.back, back.calls, back.tensor) == (True, 2, "notes")
    assert between(graph, "plan", "act").calls == 3


# -- order -------------------------------------------------------------------------------------------------


def three(pure: tuple[str, ...] = ()) -> Graph:
    tape = Tape()
    for name in ("first", "second", "third"):
        with tape.function(name):
            tape.run(0.05)
    return done(
        tape, declared={name: {"name": name, "pure": True, "idempotent": True} for name in pure}
    ).graph


def test_stages_without_known_data_keep_the_programs_order():
    graph = three()
    assert told(graph) == {("first", "second"): "order", ("second", "third"): "order"}
    assert all(edge.bytes == 0 for edge in graph.edges)


def test_pure_stages_need_no_order_among_themselves_but_one_pure_stage_is_not_enough():
    assert told(three(("first", "second"))) == {("first", "third"): "order", ("second", "third"): "order"}
    assert told(three(("first", "second", "third"))) == {}
    assert told(three(("second",))) == {("first", "second"): "order", ("second", "third"): "order"}


def test_order_is_not_said_where_data_say_it():
    tape = Tape()
    with tape.function("first") as first:
        tape.run(0.05)
    with tape.function("second") as second:
        tape.move(first, second)
        tape.run(0.05)
    with tape.function("third") as third:
        tape.move(second, third)
        tape.run(0.05)
    assert told(done(tape).graph) == {("first", "second"): "tensor", ("second", "third"): "tensor"}


def test_stages_seen_to_run_at_the_same_time_have_no_order():
    tape = Tape()
    with tape.function("left", thread=1):
        tape.run(0.02)
        with tape.function("right", thread=2):
            tape.run(0.05)
    recording = tape.recording()
    # Two threads: the second one's call is nobody's child.
    from dataclasses import replace

    spans = tuple(replace(span, parent=0) if span.id else span for span in recording.spans)
    assert told(analyse(replace(recording, spans=spans), device()).graph) == {}


def test_the_end_of_a_turn_leads_to_the_start_of_the_next():
    tape = Tape()
    for _ in range(3):
        for name in ("think", "act"):
            with tape.function(name):
                tape.run(0.05)
    graph = done(tape).graph
    assert is_acyclic(graph)
    assert between(graph, "act", "think") == Edge("act", "think", "order", 0.0, 2, "order", back=True)


# -- the text ----------------------------------------------------------------------------------------------


class Program:
    """Functions with a text, and the places in it where they call each other."""

    def __init__(self, text: str) -> None:
        self.text = dedent(text).strip("\n") + "\n"
        self.tape = Tape()

    def line(self, part: str) -> int:
        lines = [number for number, line in enumerate(self.text.splitlines(), 1) if part in line]
        assert len(lines) == 1, (part, lines)
        return lines[0]

    def call(self, name: str, at: str, seconds: float = 0.05) -> int:
        with self.calling(name, at) as span:
            self.tape.run(seconds)
        return span

    def calling(self, name: str, at: str):
        return self.tape.function(
            name, called_at=(CELL, self.line(at)), defined_at=(CELL, self.line(f"def {name.split('.')[-1]}("))
        )

    def graph(self, **more: object) -> Graph:
        return done(self.tape, sources={CELL: self.text}, **more).graph


def uses(graph: Graph) -> dict[tuple[str, str], str]:
    return {(e.src, e.dst): e.tensor for e in graph.edges if e.known == "def-use"}


AGENT = """
    def search(question): ...
    def calculate(passages): ...
    def answer(prompt):
        inputs = tokenizer(prompt, return_tensors="pt")
        return tokenizer.decode(llm.generate(**inputs)[0])
    def agent(question):
        query = question
        for turn in range(2):
            found = search(query)
            route = calculate(found)
            prompt = f"{found} {route} {question}"
            reply = answer(prompt)
            query = reply.upper()
        return reply
    agent("?")
"""


def act(turns: int = 2) -> Program:
    program = Program(AGENT)
    tape = program.tape
    with program.calling("agent", 'agent("?")'):
        for _ in range(turns):
            program.call("search", "found = search")
            program.call("calculate", "route = calculate")
            with program.calling("answer", "reply = answer") as answer:
                generate(tape, 8, 3)
            tape.move(answer, answer)
    tape.transfers = [each for each in tape.transfers if each.producer != each.consumer]
    return program


def test_a_tools_result_in_a_prompt_is_known_by_the_text():
    graph = act().graph()
    assert is_acyclic(graph)
    found = uses(graph)
    assert found["search", "calculate"] == "found"
    assert found["calculate", "prefill"] == "route"
    assert found["search", "prefill"] == "found"
    assert found["decode", "search"] == "reply", "what one turn leaves to the next"
    assert between(graph, "decode", "search").back
    assert told(graph)["prefill", "decode"] == "tensor"
    assert "order" not in told(graph).values()


def test_what_was_seen_goes_before_what_the_text_says():
    program = act(turns=1)
    tape = program.tape
    search, calculate = (next(s.id for s in tape.spans if s.name == name) for name in ("search", "calculate"))
    tape.move(search, calculate, "passages", size=77.0, known="object")
    edge = between(program.graph(), "search", "calculate")
    assert (edge.known, edge.bytes, edge.tensor) == ("object", 77.0, "passages")


def test_an_edge_through_glue_has_the_size_of_what_the_glue_handed_on():
    """The model's output is pooled by the function around it: what reaches the search is the function's."""
    program = Program(
        """
        def embed(text):
            hidden = embedder(text)
            return hidden.mean(0)
        def search(vector): ...
        vector = embed("?")
        found = search(vector)
        """
    )
    tape = program.tape
    with program.calling("embed", "vector = embed") as around, tape.module("embedder", "embed"):
        tape.run(0.1)
    tape.run(0.05)
    search = program.call("search", "found = search")
    tape.move(around, search, "vector", size=1536.0)
    graph = program.graph()
    edge = between(graph, "embed", "search")
    assert (edge.known, edge.bytes, edge.tensor, edge.calls) == ("def-use", 1536.0, "vector", 1)
    assert ("python", "search") not in {(e.src, e.dst) for e in graph.edges}, (
        "the same datum is not sent twice"
    )


def test_what_only_decides_is_not_data():
    program = Program(
        """
        def judge(text): ...
        def work(text): ...
        if judge("a") > 0.5:
            out = work("b")
        """
    )
    program.call("judge", 'judge("a")')
    program.call("work", "out = work")
    assert told(program.graph()) == {("judge", "work"): "order"}


def test_lists_that_grow_objects_and_comprehensions_carry_what_was_put_into_them():
    program = Program(
        """
        def search(question): ...
        def tool(text): ...
        def show(text): ...
        class Memory:
            def add(self, item):
                self.items.append(item)
        memory = Memory()
        notes = []
        notes.append(search("?"))
        memory.add(tool("?"))
        lines = [note.strip() for note in notes]
        show("".join(lines) + memory.text())
        """
    )
    program.call("search", "notes.append(")
    program.call("tool", "memory.add(tool")
    with program.calling("Memory.add", "memory.add(tool"):
        program.tape.run(1e-6)
    program.call("show", 'show("".join')
    assert set(uses(program.graph())) == {("search", "show"), ("tool", "show")}


def test_a_branch_that_was_not_taken_leaves_the_other_ones_value():
    program = Program(
        """
        def a(): ...
        def b(): ...
        def use(x): ...
        x = a()
        if False:
            x = b()
        out = use(x)
        """
    )
    program.call("a", "x = a()")
    program.call("use", "out = use(x)")
    assert set(uses(program.graph())) == {("a", "use")}


def test_a_name_that_is_bound_again_no_longer_carries_what_it_did():
    program = Program(
        """
        def a(): ...
        def use(x): ...
        x = a()
        x = "nothing"
        out = use(x)
        """
    )
    program.call("a", "x = a()")
    program.call("use", "out = use(x)")
    assert told(program.graph()) == {("a", "use"): "order"}


def test_functions_handed_over_and_arguments_by_name_and_star():
    program = Program(
        """
        def a(): ...
        def b(): ...
        def each(x): ...
        def both(x, y): ...
        def wrap(*args, **named):
            return both(*args, **named)
        results = list(map(each, a()))
        wrap(results, y=b())
        """
    )
    program.call("a", "results = list")
    program.call("each", "results = list")
    program.call("b", "wrap(results")
    with program.calling("wrap", "wrap(results"), program.calling("both", "return both"):
        program.tape.run(0.05)
    # wrap itself is a stage: it calls no module.
    assert set(uses(program.graph())) == {("a", "each"), ("each", "wrap"), ("b", "wrap")}


def test_a_function_run_by_a_pool_is_found_by_its_name():
    program = Program(
        """
        def fetch(url): ...
        def join(parts): ...
        futures = [pool.submit(fetch, url) for url in urls]
        join([future.result() for future in futures])
        """
    )
    with program.tape.function("fetch", thread=1, defined_at=(CELL, 1)):
        program.tape.run(0.05)
    program.call("join", "join([future")
    assert set(uses(program.graph())) == {("fetch", "join")}


def test_recursion_and_text_that_does_not_parse_do_no_harm():
    program = Program(
        """
        def tool(): ...
        def loop(n):
            return loop(n - 1) if n else llm(tool())
        loop(3)
        """
    )
    tape = program.tape
    with program.calling("loop", "loop(3)"), program.calling("loop", "return loop"):
        program.call("tool", "return loop")
        with tape.module("llm"):
            tape.run(0.1)
    assert uses(program.graph()) == {("tool", "llm"): "result"}
    other = done(tape, sources={CELL: "def broken(:\n"}).graph
    assert told(other) == {("tool", "llm"): "order"}
