"""What recorded module calls were, told by their attention's shapes: prefill or decode, and how long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gimlet_lab.capture.signatures import Attended, Meaning
from gimlet_lab.model import ModuleInfo, Span


@dataclass(slots=True)
class _Call:
    """Sums over one call's operators."""

    #: What its attention saw, the longest past first; ``exact`` before what only a softmax tells.
    attended: Attended | None = None
    kv_bytes: float = 0.0
    weights: float = 0.0
    by_dtype: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class Calls:
    """Calls by the number of their span.

    Parameters
    ----------
    accelerated : set of int
        Spans with work on an accelerator.
    """

    def __init__(self, accelerated: set[int]) -> None:
        self.accelerated = accelerated
        self._calls: dict[int, _Call] = defaultdict(_Call)

    def add(self, span: int, meaning: Meaning) -> None:
        """Count an operator in."""
        work, call = meaning.kind.work, self._calls[span]
        seen, held = meaning.attended, call.attended
        if seen is not None and (held is None or (seen.exact, seen.kv_len) > (held.exact, held.kv_len)):
            call.attended = seen
        call.kv_bytes += meaning.kv_bytes
        call.weights += meaning.table_bytes
        if work is not None and meaning.table_bytes:
            call.by_dtype[work.dtype] += meaning.table_bytes

    def named(self, spans: Sequence[Span]) -> list[Span]:
        """The spans with the roles and lengths of module calls, and signatures that say which are alike."""
        decoders = {
            span.attributes["module"]
            for span in spans
            if span.kind == "module" and (seen := self._seen(span)) is not None and seen.decodes
        }
        return [self._named(span, span.attributes.get("module") in decoders) for span in spans]

    def modules(self, spans: Sequence[Span], *, weighed: bool) -> tuple[ModuleInfo, ...]:
        """Every outermost module; the weights are those of its largest call."""
        found: dict[str, ModuleInfo] = {}
        for span in spans:
            if span.kind != "module":
                continue
            name, call = str(span.attributes["module"]), self._calls.get(span.id, _Call())
            known = found.get(name)
            if known is not None and sum(known.weights.values()) >= call.weights:
                continue
            dtype = max(call.by_dtype, key=lambda key: call.by_dtype[key], default="")
            weights = {name: int(call.weights)} if weighed and call.weights else {}
            device = "" if span.id in self.accelerated else "cpu"
            found[name] = ModuleInfo(name, span.name, weights, dtype, device)
        return tuple(found.values())

    def _seen(self, span: Span) -> Attended | None:
        return self._calls[span.id].attended if span.id in self._calls else None

    def _named(self, span: Span, decoder: bool) -> Span:
        seen = self._seen(span) if span.kind == "module" else None
        if seen is None:
            return span
        role = "decode" if seen.decodes else "prefill" if decoder or seen.causal else "forward"
        attributes: dict[str, Any] = {
            **span.attributes,
            "batch": seen.batch,
            "q_len": seen.q_len,
            "past_len": max(0, seen.kv_len - seen.q_len) if role in ("prefill", "decode") else 0,
        }
        if role in ("prefill", "decode") and self._calls[span.id].kv_bytes:
            attributes["kv_bytes"] = self._calls[span.id].kv_bytes
        return replace(span, role=role, signature=f"{role}[{seen.batch},{seen.q_len}]", attributes=attributes)
