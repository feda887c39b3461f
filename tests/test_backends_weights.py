"""Weights that are read where a model is sent, in place of being sent."""

from __future__ import annotations

import pytest
from small_llm import make_llm, torch

import gimlet_lab as gimlet
from gimlet_lab.backends.packing import pack, unpack
from gimlet_lab.backends.weights import references
from gimlet_lab.errors import GimletError


@pytest.fixture
def saved(tmp_path):
    """A model, and the folder that it was saved to."""
    llm = make_llm()
    llm.save_pretrained(tmp_path / "llm")
    return llm, tmp_path / "llm"


def sent(module):
    """Bytes of tensors that travel, and what arrives."""
    packed = pack(module, known=references(module))
    return sum(buffer.nbytes for buffer in packed.buffers), unpack(packed)


def same(a, b):
    mine, theirs = a.state_dict(), b.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def size(module):
    return sum(p.nbytes for p in module.parameters())


def test_without_a_word_all_is_sent(saved):
    llm, _ = saved
    nbytes, there = sent(llm)
    assert nbytes >= size(llm)
    assert same(llm, there)


def test_what_is_in_the_files_is_read_there(saved):
    llm, folder = saved
    gimlet.weights(llm, folder)
    nbytes, there = sent(llm)
    assert nbytes < 1000  # the rotary embedding's buffers, which nobody saves
    assert same(llm, there)
    assert [p.requires_grad for p in there.parameters()] == [p.requires_grad for p in llm.parameters()]


def test_weights_that_are_one_stay_one(tmp_path):
    llm = make_llm(tie_word_embeddings=True)
    llm.save_pretrained(tmp_path)
    gimlet.weights(llm, tmp_path)
    nbytes, there = sent(llm)
    assert nbytes < 1000
    assert there.lm_head.weight is there.model.embed_tokens.weight


def test_a_part_of_the_model_knows_the_files_too(saved):
    llm, folder = saved
    gimlet.weights(llm, folder)
    nbytes, there = sent(llm.model.layers[1])
    assert nbytes == 0
    assert same(llm.model.layers[1], there)


def test_what_was_changed_since_is_sent(saved):
    llm, folder = saved
    gimlet.weights(llm, folder)
    weight = llm.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight.mul_(0.5)
    nbytes, there = sent(llm)
    assert weight.nbytes <= nbytes < weight.nbytes + 1000
    assert same(llm, there)


def test_files_of_another_kind_of_number_are_read(saved):
    llm, folder = saved
    llm.to(torch.bfloat16).save_pretrained(folder)
    llm.to(torch.float32)
    gimlet.weights(llm, folder)
    nbytes, there = sent(llm)
    assert nbytes < 1000
    assert same(llm, there)


def test_a_model_without_its_head_finds_its_names(saved):
    llm, folder = saved
    gimlet.weights(llm.model, folder)
    nbytes, there = sent(llm.model)
    assert nbytes < 1000
    assert same(llm.model, there)


def test_a_loader_makes_the_weights_there():
    llm, made = make_llm(), []

    def load():
        made.append(1)
        return make_llm()

    gimlet.weights(llm, load)
    packed = pack(llm, known=references(llm))
    assert made == []
    assert sum(buffer.nbytes for buffer in packed.buffers) == 0
    assert same(llm, unpack(packed))


def test_a_node_that_has_other_weights_refuses(saved):
    llm, folder = saved
    gimlet.weights(llm, lambda: make_llm(seed=1))
    with pytest.raises(ValueError, match=r"holds other weights here for 'model\.embed_tokens"):
        sent(llm)
    gimlet.weights(llm, folder)
    packed = pack(llm, known=references(llm))
    make_llm(seed=1).save_pretrained(folder)
    with pytest.raises(ValueError, match="holds other weights here"):
        unpack(packed)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(GimletError, match="no safetensors file"):
        unpack(packed)


def test_what_cannot_be_is_said_at_once(saved, tmp_path):
    llm, folder = saved
    with pytest.raises(GimletError, match=r"no safetensors file at .*nowhere"):
        gimlet.weights(llm, tmp_path / "nowhere")
    with pytest.raises(GimletError, match="no weight of this Linear"):
        gimlet.weights(torch.nn.Linear(2, 2), folder)
    with pytest.raises(GimletError, match="this is a list"):
        gimlet.weights([], folder)
    (tmp_path / "broken.safetensors").write_bytes(b"not one")
    with pytest.raises(GimletError, match="cannot be read as safetensors"):
        gimlet.weights(llm, tmp_path / "broken.safetensors")
