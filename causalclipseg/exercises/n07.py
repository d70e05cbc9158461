"""Checks of notebook 07: the cosine, early stopping, a process's share, what a state must hold."""

from __future__ import annotations

import io

import torch
from torch import nn

from .. import schedule
from . import close, expect


def rate(answer) -> None:
    """the rate is that of the package, to within one step."""
    for steps in (1000, 4000):  # the package's cosine begins one step later
        for step in (0, steps // 4, steps // 2, steps - 1, steps):
            close(answer(step, steps), schedule.rate_at(step, steps, 0.0), f"the rate at step {step} of {steps}", tolerance=2 / steps)


def stop(answer) -> None:
    """training stops where the package would stop it."""
    cases = (
        ([0.1, 0.2, 0.3], 100, 3, "it improves to the end: all epochs are trained"),
        ([0.5, 0.4, 0.4, 0.4, 0.6], 3, 4, "three epochs without improvement come before the better one"),
        ([0.5, 0.5, 0.5, 0.5], 2, 3, "an equal value is no improvement"),
        ([0.1, 0.5, 0.4, 0.6, 0.5, 0.5, 0.5], 2, 6, "the count starts anew with each improvement"),
        ([0.0, 0.0, 0.3, 0.1], 2, 4, "the first value is the best so far, even 0"),
        ([0.3, 0.2], 1, 2, "with a patience of 1 the first epoch without improvement is the last"),
    )
    for dice, patience, want, why in cases:
        got = answer(list(dice), patience)
        expect(got == want, f"for {dice} and a patience of {patience} it says {got}; it should be {want}: {why}.")


def share(answer) -> None:
    """at every step all processes together hold the next batch."""
    order, batch = torch.randperm(48, generator=torch.Generator().manual_seed(0)).tolist(), 12
    for processes in (1, 2, 4):
        parts = [list(answer(list(order), process, processes)) for process in range(processes)]
        each = batch // processes
        expect({len(part) for part in parts} == {len(order) // processes}, f"with {processes} processes the shares hold {[len(p) for p in parts]} pictures; they should be equal.")
        for step in range(len(order) // batch):
            held = sorted(x for part in parts for x in part[step * each : (step + 1) * each])
            expect(held == sorted(order[step * batch : (step + 1) * batch]), f"with {processes} processes, step {step + 1} holds other pictures than the next {batch} of the list.")


def resume(state, restore) -> None:
    """eight steps in one go and four, a death and four more end in the same bits."""
    model, optimizer, scheduler = _build(0)
    torch.manual_seed(7)
    _steps(model, optimizer, scheduler, 0, 4)
    kept = state(model, optimizer, scheduler)
    expect(kept is not None, "my_state returns nothing.")
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    after_four = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    _steps(model, optimizer, scheduler, 4, 8)
    want = model.state_dict()

    other, other_optimizer, other_scheduler = _build(1)  # another process: nothing of the first is left
    torch.manual_seed(99)
    restore(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True), other, other_optimizer, other_scheduler)
    expect(_equal(other.state_dict(), after_four), "the weights are not those of the moment of death.")
    expect(len(other_optimizer.state_dict()["state"]) > 0, "Adam's moments are missing; its first steps will be wrong.")
    expect(other_scheduler.last_epoch == 4, f"the schedule stands at step {other_scheduler.last_epoch} instead of 4.")
    expect(torch.equal(torch.get_rng_state(), random), "the random numbers are others; dropout will draw other masks.")
    _steps(other, other_optimizer, other_scheduler, 4, 8)
    expect(_equal(other.state_dict(), want), "four steps later the weights differ from those of the run that nobody disturbed.")


def _build(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)


def _steps(model, optimizer, scheduler, first, last):
    for step in range(first, last):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x[:, :1]).square().mean().backward()
        optimizer.step()
        scheduler.step()


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
