"""compile=true with torch's own compiler, which takes minutes to build its kernels; plain pytest leaves this file out.

    python -m pytest tests/long/inductor.py

tests/test_training.py has what is fast about it: the tracing, the names and the numbers.
"""
import json
import os
import shutil

import pytest
import torch

from causalclipseg.config import TrainingConfig
from causalclipseg.training import train
from conftest import make_tiny_config


@pytest.mark.skipif(not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))), reason="inductor needs a C++ compiler, and none is here")
def test_a_compiled_epoch_gives_the_losses_of_an_eager_one(phantom_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))  # nothing of an earlier run, nothing left behind
    settings = dict(epochs=1, batch_size=4, sizes=(), evaluate_every=1, samples_every=0, confounder_every=2, lr=1e-3)
    runs = {}
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        config = TrainingConfig(compile=compiled, **settings)
        out = train([str(phantom_folder)], tmp_path / str(compiled), make_tiny_config(), config, quiet=True, limit=8)
        runs[compiled] = json.loads((out / "metrics.jsonl").read_text()), torch.load(out / "state" / "last.pt", weights_only=True)["model"]
    assert torch._dynamo.utils.counters["inductor"], "its kernels ran"
    for key in ("loss", "loss_causal", "loss_confounder", "dice", "val_dice"):
        assert runs[True][0][key] == pytest.approx(runs[False][0][key], abs=1e-4), key
    assert runs[True][1].keys() == runs[False][1].keys(), "a compiled run's weights have the same names"
