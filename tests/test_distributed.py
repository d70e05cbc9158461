"""Two processes on one machine (torchrun, gloo) against one process with the doubled batch; and the notebook's launcher."""
import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import notebook_launcher

from causalclipseg.config import TrainingConfig
from causalclipseg.training import TrainingError, train
from conftest import REPOSITORY, make_tiny_config

SETTINGS = dict(epochs=2, batch_size=8, sizes=(), evaluate_every=1, samples_every=0, confounder_every=2, freeze_statistics=True, lr=1e-3)
SCRIPT = """
import sys
from conftest import make_tiny_config
from causalclipseg.config import TrainingConfig
from causalclipseg.training import train
train([sys.argv[1]], sys.argv[2], make_tiny_config(), TrainingConfig(**eval(sys.argv[3])), quiet=True, limit=24)
"""


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_give_the_loss_of_one_with_the_doubled_batch(phantom_folder, tmp_path):
    one = train([str(phantom_folder)], tmp_path / "one", make_tiny_config(), TrainingConfig(**SETTINGS), quiet=True, limit=24)
    script, two = tmp_path / "script.py", tmp_path / "two"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(p) for p in (REPOSITORY, REPOSITORY / "tests")), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, script, phantom_folder, two, repr(SETTINGS)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads((two / "training.json").read_text())["processes"] == 2
    assert len(lines(one)) == len(lines(two)) == 2
    for a, b in zip(lines(one), lines(two)):
        for key in ("loss", "loss_causal", "loss_confounder", "dice", "val_dice"):
            assert a[key] == pytest.approx(b[key], abs=1e-4), key
        assert a["images"] == b["images"] == 24
    first, second = (torch.load(out / "state" / "last.pt", weights_only=True)["model"] for out in (one, two))
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-3, rtol=1e-3, msg=name)


def test_the_notebook_launcher_runs_the_same_loop(phantom_folder, tmp_path):
    settings = TrainingConfig(**{**SETTINGS, "epochs": 1})
    arguments = ([str(phantom_folder)], tmp_path / "run", make_tiny_config(), settings)
    notebook_launcher(lambda *a: train(*a, quiet=True, limit=8), arguments, num_processes=1)
    assert len(lines(tmp_path / "run")) == 1


def test_a_batch_that_cannot_be_dealt_out_evenly_is_refused(phantom_folder, tmp_path):
    with pytest.raises(TrainingError, match="A batch of 9 cannot be dealt out to 1 processes of 2 parts: raise batch_size to a multiple of 2"):
        train([str(phantom_folder)], tmp_path / "run", make_tiny_config(), TrainingConfig(**{**SETTINGS, "batch_size": 9, "accumulate": 2}), quiet=True)
