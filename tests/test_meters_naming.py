"""Which card is which device of torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gimlet_lab.hardware.meters.meter import Card
from gimlet_lab.hardware.meters.naming import Seen, by_environment, match, seen_by_torch, torch_names

H100 = [Card(f"nvidia:{i}", i, "H100", f"GPU-{i}a2b-{i}", f"0000:{i + 16:02x}:00.0") for i in range(4)]
MIXED = [*H100[:1], Card("nvidia:1", 1, "T4", "GPU-1a2b-1"), *H100[2:3]]
CUT = [H100[0], *(Card(f"nvidia:0/{i}", i, "1g", f"MIG-{i}", parent=H100[0]) for i in range(2)), H100[1]]


@pytest.mark.parametrize(
    ("cards", "visible", "order", "expected"),
    [
        (H100, None, None, ["nvidia:0", "nvidia:1", "nvidia:2", "nvidia:3"]),
        (H100, "2,0", None, ["nvidia:2", "nvidia:0"]),
        (H100, " 3 ", None, ["nvidia:3"]),
        (H100, "GPU-2a,GPU-0a2b-0", None, ["nvidia:2", "nvidia:0"]),
        (H100, "GPU-", None, []),  # which one?
        (H100, "1,9,0", None, ["nvidia:1"]),  # nothing behind what CUDA does not know
        (H100, "-1", None, []),
        (H100, "", None, []),
        # The faster card comes first unless told otherwise: numbers say nothing.
        (MIXED, None, None, []),
        (MIXED, "1", None, []),
        (MIXED, "1", "PCI_BUS_ID", ["nvidia:1"]),
        (MIXED, "GPU-1", None, ["nvidia:1"]),
        # An instance is alone.
        (CUT, "MIG-1", None, ["nvidia:0/1"]),
        (CUT, None, None, ["nvidia:0/0"]),
        ([], None, None, []),
    ],
)  # fmt: skip
def test_by_the_environment(cards, visible, order, expected) -> None:
    names = by_environment(cards, visible, order)
    assert names == {card: f"cuda:{index}" for index, card in enumerate(expected)}


def test_by_what_torch_says() -> None:
    seen = [
        Seen("cuda:0", "2A2B-2", None),
        Seen("cuda:1", None, "0000:10:00.0"),
        Seen("cuda:2", "other", None),
    ]
    assert match(H100, seen) == {"nvidia:2": "cuda:0", "nvidia:0": "cuda:1"}
    # A partition shares its card's address: not certain, so not named.
    twins = [
        Card("amd:0", 0, "MI300X", None, "0000:20:00.0"),
        Card("amd:1", 1, "MI300X", None, "0000:20:00.0"),
    ]
    assert match(twins, [Seen("cuda:0", None, "0000:20:00.0")]) == {}


def test_torch_is_asked_only_where_it_uses_cuda_already(monkeypatch) -> None:
    assert seen_by_torch() == []
    facts = SimpleNamespace(uuid="1a2b-1", pci_bus_id=17, pci_device_id=0, pci_domain_id=0)
    cuda = SimpleNamespace(
        is_initialized=lambda: True, device_count=lambda: 1, get_device_properties=lambda _: facts
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    assert seen_by_torch() == [Seen("cuda:0", "1a2b-1", "0000:11:00.0")]
    assert torch_names(H100, {}) == {"nvidia:1": "cuda:0"}
    monkeypatch.setattr(cuda, "is_initialized", lambda: 1 / 0)
    assert len(torch_names(H100, {})) == 4


def test_amd_follows_its_own_variables() -> None:
    cards = [Card(f"amd:{i}", i, "MI300X") for i in range(2)]
    assert torch_names(cards, {"HIP_VISIBLE_DEVICES": "1"}) == {"amd:1": "cuda:0"}
    assert torch_names(cards, {"CUDA_VISIBLE_DEVICES": "1"}) == {"amd:1": "cuda:0"}
    assert torch_names(cards, {"ROCR_VISIBLE_DEVICES": "1"}) == {}
    assert torch_names([*cards, *H100], {}) == {f"nvidia:{i}": f"cuda:{i}" for i in range(4)}
