"""What a run shows for TensorBoard: each point once, and a full disk is no end of the run."""
import json

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from causalclipseg.config import TrainingConfig
from causalclipseg.runs import RunLog


def line(epoch, loss):
    return {"epoch": epoch, "loss": loss, "loss_causal": loss, "loss_confounder": 0.0, "images_per_second": 1.0, "seconds": 1.0}


def test_a_run_killed_before_its_first_state_shows_each_point_once(tmp_path):
    for loss in (2.0, 1.0):  # the second time the epoch is run again, as from the start
        log = RunLog(tmp_path, TrainingConfig(), 0, main=True, quiet=True)
        log.line(line(1, loss))
        log.close()
        (tmp_path / "metrics.jsonl").unlink()  # `tidy` drops the lines of epochs that are run again
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0)]


@pytest.mark.parametrize("broken", ["add_scalar", "add_image", "close"])
def test_events_that_cannot_be_written_end_with_one_warning_and_the_curve_goes_on(tmp_path, monkeypatch, broken, recwarn):
    log = RunLog(tmp_path, TrainingConfig(), 0, main=True, quiet=True)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log._events, broken, full)
    monkeypatch.setattr("causalclipseg.runs.sample_sheet", lambda *_: Image.new("RGB", (8, 8)))
    for epoch in (1, 2):
        log.line(line(epoch, 1.0))
        log.samples(None, {}, epoch)
    log.close()
    said = [str(w.message) for w in recwarn if "TensorBoard" in str(w.message)]
    assert len(said) == 1 and "(No space left on device)" in said[0] and "metrics.jsonl" in said[0]
    assert [json.loads(text)["epoch"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert len(list((tmp_path / "samples").iterdir())) == 2
