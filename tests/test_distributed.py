"""Two processes on one machine (torchrun, gloo) against one process with the doubled batch; and the other launchers."""
import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import notebook_launcher

from causalclipseg.config import TrainingConfig
from causalclipseg.training import TrainingError, train
from conftest import REPOSITORY, make_tiny_config, tiny_changes

SETTINGS = dict(epochs=2, batch_size=8, sizes=(), evaluate_every=1, samples_every=0, confounder_every=2, freeze_statistics=True, lr=1e-3)
SCRIPT = """
import os
import sys
from conftest import make_tiny_config
from causalclipseg import training
from causalclipseg.config import TrainingConfig
data, out, settings, resume, steps = sys.argv[1], sys.argv[2], *map(eval, sys.argv[3:])
original, calls = training._average, []
def dying(*arguments):  # the first of the processes, after so many steps
    calls.append(1)
    if len(calls) > steps and os.environ["RANK"] == "0":
        os._exit(9)
    return original(*arguments)
if steps:
    training._average = dying
training.train([data], out, make_tiny_config(), TrainingConfig(**settings), quiet=True, limit=24, resume=resume)
"""

FORKING = """
import sys
from accelerate import debug_launcher
from conftest import make_tiny_config
from causalclipseg.config import TrainingConfig
from causalclipseg.training import train
settings = TrainingConfig(**eval(sys.argv[3]))
debug_launcher(lambda: train([sys.argv[1]], sys.argv[2], make_tiny_config(), settings, quiet=True, limit=8), num_processes=2)
"""


def environment():
    """Of another process: the package and its tests can be imported, and there is no GPU."""
    paths = os.pathsep.join(str(p) for p in (REPOSITORY, REPOSITORY / "tests"))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def torchrun(data, out, settings, resume=False, steps=0):
    """A run of two processes; after so many steps one of them dies, and the other one with it."""
    script = out.with_suffix(".py")
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, data, out, repr(settings), repr(resume), repr(steps)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert (done.returncode == 0) == (not steps), done.stderr


@pytest.fixture(scope="module")
def settings(tiny_model_dir):
    return {**SETTINGS, "teacher": str(tiny_model_dir)}  # whose answers the processes share


@pytest.fixture(scope="module")
def two(phantom_folder, settings, tmp_path_factory):
    """A run of two processes that nothing stopped; read, don't write."""
    out = tmp_path_factory.mktemp("two") / "run"
    torchrun(phantom_folder, out, settings)
    return out


def test_two_processes_give_the_loss_of_one_with_the_doubled_batch(phantom_folder, settings, two, tmp_path):
    one = train([str(phantom_folder)], tmp_path / "one", make_tiny_config(), TrainingConfig(**settings), quiet=True, limit=24)
    assert json.loads((two / "training.json").read_text())["processes"] == 2
    assert len(lines(one)) == len(lines(two)) == 2
    for a, b in zip(lines(one), lines(two)):
        for key in ("loss", "loss_causal", "loss_confounder", "dice", "val_dice"):
            assert a[key] == pytest.approx(b[key], abs=1e-4), key
        assert a["images"] == b["images"] == 24
    first, second = (torch.load(out / "state" / "last.pt", weights_only=True)["model"] for out in (one, two))
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-3, rtol=1e-3, msg=name)


def test_a_run_of_two_processes_that_dies_goes_on_as_if_it_had_not(phantom_folder, settings, two, tmp_path):
    out, settings = tmp_path / "run", {**settings, "checkpoint_every": "1 step"}
    torchrun(phantom_folder, out, settings, steps=4)  # an epoch has 3
    state = torch.load(out / "state" / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 1) and len(lines(out)) == 1
    torchrun(phantom_folder, out, settings, resume=True)
    curves = [[{k: v for k, v in line.items() if not k.endswith(("second", "seconds"))} for line in lines(run)] for run in (out, two)]
    assert curves[0] == curves[1] and len(curves[0]) == 2 and "val_dice" in curves[0][1]
    first, second = (torch.load(run / "state" / "last.pt", weights_only=True) for run in (out, two))
    for part in ("model", "average"):
        assert all(torch.equal(value, second[part][name]) for name, value in first[part].items())
    assert all(torch.equal(kept["exp_avg_sq"], second["optimizer"]["state"][i]["exp_avg_sq"]) for i, kept in first["optimizer"]["state"].items())


def test_the_notebook_launcher_runs_the_same_loop(phantom_folder, tmp_path):
    settings = TrainingConfig(**{**SETTINGS, "epochs": 1})
    arguments = ([str(phantom_folder)], tmp_path / "run", make_tiny_config(), settings)
    notebook_launcher(lambda *a: train(*a, quiet=True, limit=8), arguments, num_processes=1)
    assert len(lines(tmp_path / "run")) == 1


def test_processes_that_are_forked_from_one_session_train_together(phantom_folder, tmp_path):
    """As `notebook_launcher` starts them where there are GPUs; on a CPU it starts none, and accelerate's debug_launcher does."""
    (tmp_path / "script.py").write_text(FORKING)
    command = [sys.executable, tmp_path / "script.py", phantom_folder, tmp_path / "run", repr({**SETTINGS, "epochs": 1})]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "run")) == 1 and json.loads((tmp_path / "run" / "training.json").read_text())["processes"] == 2


def test_accelerate_launch_runs_the_command_line_in_two_processes(phantom_folder, tmp_path):
    """Without a GPU its --multi_gpu starts as many processes, over gloo; its --cpu starts one, unless there is MPI."""
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
    settings = [*tiny_changes(), "epochs=1", "batch_size=8", "sizes=[]", "samples_every=0"]
    train_command = ["train", "--data", phantom_folder, "--preset", "mini", "--out", tmp_path / "run", "--limit", "8"]
    train_command += [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, *launch.split(), "-m", "causalclipseg", *train_command]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "run")) == 1 and json.loads((tmp_path / "run" / "training.json").read_text())["processes"] == 2
    assert done.stdout.count("epoch 1/1") == 1, "one process speaks"


def test_a_batch_that_cannot_be_dealt_out_evenly_is_refused(phantom_folder, tmp_path):
    with pytest.raises(TrainingError, match="A batch of 9 cannot be dealt out to 1 processes of 2 parts: raise batch_size to a multiple of 2"):
        train([str(phantom_folder)], tmp_path / "run", make_tiny_config(), TrainingConfig(**{**SETTINGS, "batch_size": 9, "accumulate": 2}), quiet=True)
