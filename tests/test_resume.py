"""A run killed with SIGKILL, anywhere, goes on as if it had not been; a full disk ends it and spoils nothing."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from causalclipseg import checkpoints, training
from causalclipseg.checkpoints import STATE, Progress, read_state, save_state
from causalclipseg.config import TrainingConfig
from causalclipseg.feeding import Feed, find_data, training_sets
from causalclipseg.model import CausalCLIPSeg
from causalclipseg.training import TrainingError, train
from conftest import REPOSITORY, make_tiny_config, on_gpu

SETTINGS = dict(epochs=2, batch_size=4, sizes=(), evaluate_every=1, checkpoint_every="1 step", samples_every=1, ema=0.9)
SCRIPT = """
import sys
from conftest import make_tiny_config
from causalclipseg.config import TrainingConfig
from causalclipseg.training import train
train([sys.argv[1]], sys.argv[2], make_tiny_config(), TrainingConfig(**eval(sys.argv[3])), quiet=True)
"""


def go(data, out, resume=False, limit=None, **changes):
    return train([str(data)], out, make_tiny_config(), TrainingConfig(**{**SETTINGS, **changes}), resume=resume, limit=limit, quiet=True)


def process(data, out):
    """The same as `go`, in a process of its own."""
    path = os.pathsep.join(str(p) for p in (REPOSITORY, REPOSITORY / "tests"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, data, out, repr(SETTINGS)], env=environment, stderr=subprocess.PIPE, text=True)


def lines(out):
    """metrics.jsonl without what a clock measured."""
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in read]


def place(out):
    """(epochs done, steps done of the next) of the last state."""
    if not (out / STATE).exists():
        return (-1, -1)
    state = torch.load(out / STATE, weights_only=True)
    return state["epoch"], state["step"]


def test_a_run_killed_within_an_epoch_goes_on_as_if_it_had_not_been(phantom_folder, tmp_path):
    whole, killed = go(phantom_folder, tmp_path / "whole"), tmp_path / "killed"
    running = process(phantom_folder, killed)
    while running.poll() is None and not 3 <= place(killed)[1] < 9:  # an epoch has 9 steps
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    _, err = running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL, f"it ended before it was killed: {err}"
    assert 3 <= place(killed)[1] < 9
    left = killed / "state" / ".last.pt.1.tmp"  # what a death in the middle of a state leaves, beside the good one
    left.write_bytes((killed / STATE).read_bytes()[:100])
    with open(killed / "metrics.jsonl", "a") as log:
        log.write('{"epoch": 2, "lo')
    go(phantom_folder, killed, resume=True)

    assert lines(killed) == lines(whole) and len(lines(whole)) == 2
    first, second = (torch.load(out / STATE, weights_only=True) for out in (whole, killed))
    for part in ("model", "average"):
        assert all(torch.equal(first[part][key], second[part][key]) for key in first[part])
    for key in ("epoch", "step", "sums", "best", "best_epoch"):
        assert first[key] == second[key]
    moments = [state["optimizer"]["state"] for state in (first, second)]
    assert all(torch.equal(a["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i, a in moments[0].items())
    for name in ("model.safetensors", "last/model.safetensors", "samples/epoch-0002.png"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert not left.exists()


class Death(Exception):
    pass


IN_PARTS = dict(limit=20, accumulate=2, freeze_statistics=True, checkpoint_every="2 steps", samples_every=0, evaluate_every=2)


@pytest.fixture(scope="module")
def whole_in_parts(phantom_folder, tmp_path_factory):
    """Two epochs of five steps, each in two parts, without a death."""
    return go(phantom_folder, tmp_path_factory.mktemp("whole") / "run", **IN_PARTS)


def die_after(patch, steps):
    """Let the run die after so many of its steps."""
    original, calls = training._average, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) > steps:
            raise Death
        return original(*arguments)

    patch.setattr(training, "_average", dying)


@pytest.mark.parametrize("steps, found", [(1, (-1, -1)), (3, (0, 2)), (8, (1, 2))])
def test_a_run_that_dies_at_any_step_goes_on_as_if_it_had_not(phantom_folder, whole_in_parts, tmp_path, monkeypatch, steps, found):
    """Before its first state, within its first epoch and within its second."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Death):
        die_after(patch, steps)
        go(phantom_folder, out, **IN_PARTS)
    assert place(out) == found
    go(phantom_folder, out, resume=True, **IN_PARTS)
    assert lines(out) == lines(whole_in_parts)


@on_gpu
def test_a_run_in_fp16_that_dies_goes_on_with_the_scale_of_its_loss(phantom_folder, tmp_path, monkeypatch):
    changes = dict(precision="fp16", limit=20, checkpoint_every="2 steps", samples_every=0)
    whole, out = go(phantom_folder, tmp_path / "whole", **changes), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Death):
        die_after(patch, 8)
        go(phantom_folder, out, **changes)
    assert place(out) == (1, 2)
    go(phantom_folder, out, resume=True, **changes)
    first, second = (torch.load(run / STATE, weights_only=True)["scaler"] for run in (whole, out))
    assert first == second and first["scale"] > 0
    for resumed, unstopped in zip(lines(out), lines(whole), strict=True):
        assert resumed == pytest.approx(unstopped, abs=0.03)  # a GPU's sums come in any order


def test_the_scale_of_the_loss_and_a_skipped_step_are_read_back(phantom_folder, tmp_path):
    """What fp16 does on a GPU, by torch's scaler for a CPU: a gradient that is infinite halves the scale and moves no weight."""
    model_config, config = make_tiny_config(), TrainingConfig(**{**SETTINGS, "clip_grad": 0.0})
    sets = training_sets(find_data([str(phantom_folder)], config, 12)[0], model_config, config)

    def begun():
        torch.manual_seed(0)
        AcceleratorState._reset_state()
        accelerator = Accelerator(cpu=True, mixed_precision="no")
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        return training._Update(CausalCLIPSeg(model_config), config, accelerator, None)

    def step(update, number):
        torch.manual_seed(number)
        update(list(Feed(sets, config).epoch(0, model_config.image_size))[number], "minimax")

    update = begun()
    step(update, 0)
    before = {name: p.detach().clone() for name, p in update.model.named_parameters()}
    hook = next(update.model.causal.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    step(update, 1)
    hook.remove()
    assert update.accelerator.scaler.get_scale() == 512 and all(torch.equal(p, before[name]) for name, p in update.model.named_parameters())
    save_state(tmp_path, Progress(step=2), update.parts, **FACTS)
    again = begun()
    read_state(tmp_path, again.parts, **FACTS)
    for one in (update, again):
        step(one, 2)
    for name, part in update.parts.items():
        torch.testing.assert_close(again.parts[name].state_dict(), part.state_dict(), rtol=0, atol=0)
    scaler = again.accelerator.scaler.state_dict()
    assert (scaler["scale"], scaler["_growth_tracker"]) == (512, 1) and any(not torch.equal(p, before[name]) for name, p in again.model.named_parameters())


# ---------------------------------------------------------------- states


def part(value):
    model = torch.nn.Linear(400, 400)
    torch.nn.init.constant_(model.weight, value)
    return model


FACTS = dict(digest="d", epochs=3)


@pytest.fixture
def limited():
    """Within it, no file of this process may pass so many bytes: what a full disk does, where no disk can be filled."""
    resource = pytest.importorskip("resource", reason="only Unix has limits for a process")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, limited):
    save_state(tmp_path, Progress(epoch=1, step=2, sums=[0.5], best=0.25), {"model": part(1)}, **FACTS)
    before = (tmp_path / STATE).read_bytes()
    limited(50_000)
    with pytest.raises(TrainingError, match=r"state/last.pt could not be written \(File too large\); the state before epoch 2, step 7 is whole"):
        save_state(tmp_path, Progress(epoch=1, step=7), {"model": part(2)}, **FACTS)
    assert (tmp_path / STATE).read_bytes() == before and os.listdir(tmp_path / "state") == ["last.pt"]
    model = part(3)
    progress = read_state(tmp_path, {"model": model}, **FACTS)
    assert (progress.epoch, progress.step, progress.sums, progress.best) == (1, 2, [0.5], 0.25) and model.weight.unique().tolist() == [1]


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk, and not everywhere")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_run_whose_disk_is_full_stops_with_one_sentence_and_goes_on_when_there_is_room(phantom_folder, tmp_path, small_disk, monkeypatch):
    changes = dict(limit=8, samples_every=0, evaluate_every=2)
    whole, out, filler = go(phantom_folder, tmp_path / "whole", **changes), small_disk / "run", small_disk / "filler"
    original = training.save_state

    def fill_first(folder, progress, *arguments, **facts):
        if (progress.epoch, progress.step) == (1, 1):  # no room for a second state beside the first
            room = os.statvfs(small_disk)
            filler.write_bytes(b"\0" * (room.f_bavail * room.f_frsize - (out / STATE).stat().st_size // 2))
        original(folder, progress, *arguments, **facts)

    with monkeypatch.context() as patch, pytest.raises(TrainingError) as stopped:
        patch.setattr(training, "save_state", fill_first)
        go(phantom_folder, out, **changes)
    assert f"{out / STATE} could not be written (No space left on device); the state before epoch 2, step 1 is whole" in str(stopped.value)
    assert place(out) == (1, 0) and os.listdir(out / "state") == ["last.pt"]
    filler.unlink()
    go(phantom_folder, out, resume=True, **changes)
    assert lines(out) == lines(whole)


def test_a_damaged_state_is_refused_with_its_name(tmp_path):
    save_state(tmp_path, Progress(), {"model": part(1)}, **FACTS)
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match="state/last.pt cannot be read"):
        read_state(tmp_path, {"model": part(2)}, **FACTS)


def test_a_state_written_before_there_were_steps_is_read(tmp_path):
    """States of older runs hold whole epochs, and parts that are no longer needed."""
    (tmp_path / "state").mkdir()
    old = {"model": part(1).state_dict(), "scheduler": {}, "rng": torch.get_rng_state(), "epoch": 4, "best": 0.5, "best_epoch": 3, "seconds": 9.0, **FACTS}
    torch.save(old, tmp_path / STATE)
    progress = read_state(tmp_path, {"model": part(2)}, **FACTS)
    assert progress == Progress(epoch=4, best=0.5, best_epoch=3, seconds=9.0)


def test_only_whole_lines_of_the_log_are_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n\n{"epoch": 2}\n{"epo')
    assert checkpoints.read_log(tmp_path) == [{"epoch": 1}, {"epoch": 2}]
    torn = [tmp_path / folder / ".x.png.1.tmp" for folder in ("state", "last", "samples")]
    for path in torn:
        path.parent.mkdir()
        path.write_text("half")
    checkpoints.tidy(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1}\n' and not any(path.exists() for path in torn)


def test_a_run_whose_settings_are_torn_is_refused_with_the_reason(tmp_path):
    (tmp_path / "training.json").write_text('{"epochs": ')
    with pytest.raises(TrainingError, match=r"holds no run that could be resumed \(Expecting value"):
        checkpoints.run_file(tmp_path)
