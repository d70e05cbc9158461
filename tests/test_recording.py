"""Recorded passes: on a GPU what the network itself gives; here, where torch cannot record, all but torch's own part."""

import copy
import functools
import weakref

import pytest
import torch

from causalclipseg.config import TrainingConfig
from causalclipseg.losses import batch_loss
from causalclipseg.model import CausalCLIPSeg
from causalclipseg.recording import Recording
from causalclipseg.training import TrainingError, check_settings
from conftest import lively, make_tiny_config, on_gpu

KINDS = ("minimax", "none", "minimax", "causal")


def make_batch(device="cpu", size=64):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 1, size, size, generator=generator) > 0.7
    return {"images": torch.rand(4, 3, size, size, generator=generator).to(device), "masks": masks.float().to(device),
            "reports": ["Left lung.", "Right lung.", "Left lung.", ""], "names": list("abcd")}  # fmt: skip


def assert_the_same_step(recorded, own, batch, kind, **tolerance):
    """Loss, logits, gradients and statistics of a step of two networks with the same weights; recorded: a `Recording` of one of them."""
    config = TrainingConfig(objective=kind)
    results = [batch_loss(called, batch, kind, config) for called in (recorded, own)]
    for loss, _ in results:
        loss.total.backward()
    torch.testing.assert_close(results[0], results[1], **tolerance)
    for (name, mine), theirs in zip(recorded.model.named_parameters(), own.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, **tolerance)
    for mine, theirs in zip(recorded.model.buffers(), own.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)
    for network in (recorded.model, own):
        network.zero_grad()


@pytest.fixture
def two_networks():
    model = lively(CausalCLIPSeg(make_tiny_config())).train()
    return model, copy.deepcopy(model)


@pytest.fixture
def recordings(monkeypatch):
    """torch's own part left out: what is to be recorded is run a few times, as torch does, and called as it is."""
    made = []

    def run_and_return(one_pass, arguments, **options):
        assert not torch.is_autocast_cache_enabled(), "torch refuses to record beside a cache of cast weights"
        for _ in range(3):
            one_pass(*arguments)
        made.append((tuple(arguments[0].shape), options["pool"]))
        return one_pass

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", run_and_return)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    return made


def test_a_recorded_step_is_the_networks_own(two_networks, recordings):
    model, own = two_networks
    recorded = Recording(model)
    for kind in KINDS:
        assert_the_same_step(recorded, own, make_batch(), kind, rtol=1e-4, atol=1e-6)


def test_each_kind_of_pass_is_recorded_once_a_picture_size_into_one_pool_of_memory_a_size(two_networks, recordings):
    recorded = Recording(two_networks[0])
    for size in (64, 64, 96):
        for kind in KINDS:
            batch_loss(recorded, make_batch(size=size), kind, TrainingConfig(objective=kind))
    kinds = 3  # minimax reverses a gradient, causal does not, none has no confounder branch
    assert [shape[-1] for shape, _ in recordings] == [64] * kinds + [96] * kinds
    assert len({id(pool) for shape, pool in recordings if shape[-1] == 64}) == 1
    assert len({id(pool) for _, pool in recordings}) == 2


def test_an_earlier_picture_size_is_let_go(two_networks, recordings):
    recorded = Recording(two_networks[0])
    batch_loss(recorded, make_batch(size=64), "none", TrainingConfig(objective="none"))
    earlier = next(iter(recorded.passes.values()))
    earlier.forward = functools.partial(earlier.forward)  # as torch leaves it: a module that holds itself
    gone = weakref.ref(earlier)
    del earlier
    batch_loss(recorded, make_batch(size=96), "none", TrainingConfig(objective="none"))
    assert gone() is None


def test_torchs_own_recorder_is_as_before_afterwards(two_networks, recordings, monkeypatch):
    before = torch.cuda.graph
    batch_loss(Recording(two_networks[0]), make_batch(), "none", TrainingConfig(objective="none"))
    assert torch.cuda.graph is before

    def fail(*_, **__):
        raise RuntimeError("cannot record")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    with pytest.raises(RuntimeError, match="cannot record"):
        batch_loss(Recording(two_networks[1]), make_batch(), "none", TrainingConfig(objective="none"))
    assert torch.cuda.graph is before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU records")
def test_without_a_gpu_graphs_are_refused():
    with pytest.raises(TrainingError, match="graphs=true needs a GPU"):
        check_settings(make_tiny_config(), TrainingConfig(graphs=True))


@pytest.mark.parametrize("also", [dict(compile=True), dict(accumulate=2), dict(objective="interventional"), dict(objective="bounded")])
def test_what_one_recorded_pass_a_step_cannot_do_is_refused(also, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(TrainingError, match="leave compile out, set accumulate=1, and take another objective than interventional and bounded"):
        check_settings(make_tiny_config(), TrainingConfig(graphs=True, **also))


@on_gpu
def test_a_recorded_step_on_a_gpu_is_the_networks_own(two_networks):
    model, own = (network.cuda() for network in two_networks)
    recorded = Recording(model)
    for size in (64, 96):
        for kind in KINDS:
            assert_the_same_step(recorded, own, make_batch("cuda", size), kind, rtol=1e-2, atol=1e-4)
