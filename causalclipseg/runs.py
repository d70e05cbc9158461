"""What a run shows and writes while it goes on: the bar, one line an epoch, TensorBoard events, sample pictures."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from ._files import written_beside
from .checkpoints import LOG, writing
from .config import TrainingConfig
from .data import ReferringDataset
from .metrics import counts, dice
from .plots import BLACK, GREEN, SKY, WHITE, overlay

SAMPLES, SMALLEST = 6, 160  #: pictures of a sample sheet, and the least edge of each, in pixels
NUMBERS = ("loss", "loss_causal", "loss_confounder", "dice")  #: of a step, as `means` returns them


def means(sums: list[float]) -> dict[str, float]:
    """Means of an epoch's steps so far: total loss, L_c, L_s (over the steps that had one) and Dice while training.

    Args:
        sums: of total loss, L_c, L_s, Dice, steps, steps with L_s.
    """
    *numbers, steps, steps_s = sums
    return {name: value / max(steps_s if name == "loss_confounder" else steps, 1) for name, value in zip(NUMBERS, numbers)}


def bar_text(sums: list[float], rate: float, images_per_second: float, left: float) -> str:
    """What stands before the bar, for 80 columns: the epoch's means so far, the learning rate, the pace, and the time left of the run."""
    m = means(sums)
    return (
        f"loss {m['loss']:.2f} L_c {m['loss_causal']:.3f} L_s {m['loss_confounder']:.2f} Dice {m['dice']:.3f} lr {rate:.1e} "
        f"{images_per_second:.0f} img/s {tqdm.format_interval(left)} left"
    )


class RunLog:
    """The main process's pen and voice; on the others every method does nothing.

    Args:
        out: the run's folder. epoch: epochs done already. main: whether this is the main process.
        quiet: say nothing. Otherwise a bar is shown on a terminal, and one line an epoch anywhere.
    """

    def __init__(self, out: Path, config: TrainingConfig, epoch: int, *, main: bool, quiet: bool):
        self.out, self.config, self.main, self.quiet = out, config, main, quiet
        self._bar, self._events = None, None
        if main:
            self._events = _events(out, epoch)

    def begin(self, epoch: int, steps: int, done: int) -> None:
        """A new bar, for an epoch of which `done` steps are done."""
        hidden = True if self.quiet or not self.main else None  # None: shown on a terminal only
        self._bar = tqdm(total=steps, initial=done, desc=f"{epoch + 1}/{self.config.epochs}", bar_format="{desc} {percentage:.0f}%|{bar}|", disable=hidden, leave=False)
        self._epoch, self._began, self._done = epoch, time.monotonic(), done

    def step(self, sums: list[float] | None, rate: float) -> None:
        """One step more; `sums` where they were read (see `means`)."""
        self._bar.update()
        if sums is None or self._bar.disable:
            return
        pace = (self._bar.n - self._done) / (time.monotonic() - self._began)  # steps a second
        left = ((self.config.epochs - self._epoch) * self._bar.total - self._bar.n) / pace
        self._bar.set_description_str(f"{self._epoch + 1}/{self.config.epochs} " + bar_text(sums, rate, pace * self.config.batch_size, left))

    def end(self) -> None:
        self._bar.close()

    def line(self, line: dict) -> None:
        """An epoch's line: to `metrics.jsonl`, to TensorBoard, and said."""
        if not self.main:
            return
        with writing(self.out / LOG), open(self.out / LOG, "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if isinstance(value, float):
                self._event("add_scalar", name, value, line["epoch"])
        if not self.quiet:
            tqdm.write(_summary(line, self.config))

    def samples(self, predict, validation: dict[str, ReferringDataset], epoch: int) -> None:
        """`samples/epoch-0005.png`: the same few validation pictures, spread over the folders, and what is predicted."""
        if not self.main:
            return
        sheet, path = sample_sheet(predict, validation), self.out / "samples" / f"epoch-{epoch:04d}.png"
        with writing(path), written_beside(path) as beside:
            sheet.save(beside, format="PNG")
        self._event("add_image", "samples", np.array(sheet), epoch, dataformats="HWC")

    def close(self) -> None:
        self._event("close")

    def _event(self, what: str, *arguments, **options) -> None:
        """For TensorBoard; where its file takes no more, as on a full disk, the run goes on without: all is written elsewhere, too."""
        if self._events is None:
            return
        try:
            getattr(self._events, what)(*arguments, **options)
        except OSError as error:
            self._events = None
            reason = error.strerror or error
            warnings.warn(f"TensorBoard's events in {self.out} could not be written ({reason}) and end here; the curve is in {LOG}.", stacklevel=3)


def sample_sheet(predict, validation: dict[str, ReferringDataset], count: int = SAMPLES) -> Image.Image:
    """Pictures in two rows: the true mask above (green), the predicted one below (blue), with its Dice.

    Args:
        predict: f(images, reports) -> probability, see `evaluation.py`. validation: data sets without transform.
        count: pictures in all, spread evenly over the data sets and within each.
    """
    share = [count // len(validation) + (i < count % len(validation)) for i in range(len(validation))]
    items = [data[int(i)] for data, n in zip(validation.values(), share) for i in np.linspace(0, len(data) - 1, min(n, len(data)))]
    images = torch.stack([item["image"] for item in items]).float().div(255).expand(-1, 3, -1, -1)
    found = predict(images, [item["report"] for item in items]).float().cpu()[:, 0] >= 0.5
    truth = torch.cat([item["mask"] for item in items]) > 0
    scores = dice(*counts(found, truth).T)
    scale = -(-SMALLEST // images.shape[-1])  # small pictures are shown larger, so that their names can be read
    edge, band = scale * images.shape[-1], 14
    sheet = Image.new("RGB", (len(items) * edge, 2 * (edge + band)), WHITE)
    draw = ImageDraw.Draw(sheet)
    for i, item in enumerate(items):
        picture, below = item["image"].numpy()[0], f"predicted, Dice {scores[i]:.2f}"
        for row, (mask, colour, text) in enumerate(((truth[i].numpy(), GREEN, f"true: {item['name']}"), (found[i].numpy(), SKY, below))):
            top = row * (edge + band)
            tile = overlay(picture.repeat(scale, 0).repeat(scale, 1), mask.repeat(scale, 0).repeat(scale, 1), colour=colour)
            sheet.paste(tile, (i * edge, top))
            draw.text((i * edge + 2, top + edge + 1), text[: edge // 6], fill=BLACK)
    return sheet


def _events(out: Path, epoch: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the curves are in metrics.jsonl, too
        return None
    with writing(out / "events"):
        return SummaryWriter(out, purge_step=epoch + 1)  # also at the start: a run killed before its first state has left events


def _summary(line: dict, config: TrainingConfig) -> str:
    text = f"epoch {line['epoch']}/{config.epochs}  loss {line['loss']:.4f}  L_c {line['loss_causal']:.4f}  L_s {line['loss_confounder']:.4f}"
    if "val_dice" in line:
        text += f"  val Dice {line['val_dice']:.4f}"
    return text + f"  {line['images_per_second']:.1f} images/s  {line['seconds'] / 60:.1f} min"
