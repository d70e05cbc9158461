"""Samples as tensors: decoded once, held compactly, augmented repeatably."""
from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from .. import reports
from ..images import ImageError, open_picture, read_image, several, stores_white_as_zero, upright
from .joining import joined
from .pixels import Plan, render
from .tables import DataError


# ---------------------------------------------------------------- files

def load_image(path) -> np.ndarray:
    """A picture file as grey uint8 (H, W), 0 to 255, by the rules of `images.read_picture`.

    DataError names a file that can't be read.
    """
    try:
        return read_image(path, least=1)
    except ImageError as error:
        raise DataError(f"{error} Replace or remove it.") from error


def load_mask(path) -> np.ndarray:
    """A mask file as bool (H, W): above 127, or above 0 where the file's maximum is 1.

    1-bit, grey, colour and palette files are read (of colours the brightest channel counts); 16-bit ones are cut at
    32,767, and inverted where the file stores white as zero. Anything else, such as labels 0 and 2, values that are not
    numbers or several pages, raises DataError, because a guess could silently be an empty mask.
    """
    array = _decode(path)
    high = array.max(initial=0)
    if not (np.isfinite(high) and np.isfinite(array.min(initial=0))):
        raise DataError(f"{path} is no mask: it holds values that are not numbers (NaN or infinity). Save it with 0 and 255.")
    if high <= 1:
        return array > 0.5
    threshold = 127 if high <= 255 else 32767
    if high <= threshold:
        raise DataError(f"{path} is no mask: its largest value is {high}. Expected 0 and 1, or 0 and 255. Save it "
                        f"with lesions at 255.")
    return array > threshold


def _decode(path) -> np.ndarray:
    """(H, W) values of a mask file, turned as load_image turns its picture."""
    try:
        with open_picture(path) as picture:
            reason, inverted = several(picture), stores_white_as_zero(picture)
            if not reason:
                values = _mask_values(upright(picture)[0])
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there.") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error … for broken files
        raise DataError(f"{path} can't be read as a picture ({error}). Replace or remove it.") from error
    if reason:
        raise DataError(f"{path} {reason}.")
    return 65535 - values if inverted else values


def _opaque(picture: Image.Image) -> Image.Image:
    """Transparent pixels over black, as RGB; everything else unchanged."""
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture).convert("RGB")
    return picture


def _mask_values(picture: Image.Image) -> np.ndarray:
    if picture.mode == "P":
        index = np.asarray(picture)
        colours = np.asarray(_opaque(picture).convert("RGB")).max(axis=2)
        palette = np.reshape(picture.getpalette("RGB"), (-1, 3)).max(axis=1)[: max(int(index.max(initial=0)), 1) + 1]
        # A palette without distinct colours carries its labels in the index; of a file with one index the palette tells.
        flat = colours.min() == colours.max() and (index.min() != index.max() or (len(palette) > 1 and palette.min() == palette.max()))
        return index if flat else colours
    if picture.mode in ("1", "L") or picture.mode.startswith(("I", "F")):
        return np.asarray(picture)
    return np.asarray(_opaque(picture).convert("RGB")).max(axis=2)


# ---------------------------------------------------------------- data set

class ReferringDataset(Dataset):
    """Pictures, sentences and masks of a list of samples.

    samples    from find_samples; each needs a mask
    transform  None, or a TrainTransform, whose `prepare` edits an item; its plan is carried out when a batch is made
    size       edge in pixels all are resized to (pictures bilinear with antialiasing, masks nearest), or None:
               every item at its own size, read from its file each time (what evaluation at the masks' own size needs)
    cache      True: decode all now, into one uint8 array (N, size, size) for the pictures and a bit-packed one for
               the masks (56 KB a sample at 224); forked DataLoader workers share them. False: read at each access
    seed       with the epoch and the index, seeds each item's augmentation, so a resumed run repeats it
    answers    None, or a teacher's probabilities, uint8 (N, size, size), 255 for 1; set when there are some (`distillation.py`)

    Item i: dict(image=uint8 tensor (1, H, W), mask=uint8 tensor (1, H, W) of 0 and 1, report=str, name=str, index=i,
    plan=Plan, what `pixels.render` is still to do). With answers, these are the mask's second channel.
    DataError names a file that can't be read, or a mask whose size differs from its picture's.
    """

    def __init__(self, samples, transform=None, size: int | None = 224, cache: bool = True, seed: int = 0):
        self.samples = list(samples)
        if not self.samples:
            raise DataError("No samples given: the list is empty.")
        bare = [s.name for s in self.samples if s.mask is None]
        if bare:
            raise DataError(f"{len(bare)} samples have no mask ({', '.join(bare[:3])}). Leave them out, or read them "
                            f"with load_image to predict.")
        self.transform, self.size, self.seed = transform, size, seed
        # In shared memory, so that set_epoch also reaches workers that are already running (persistent_workers).
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._images = self._masks = None
        self.answers: np.ndarray | None = None
        if cache and size is not None:
            self._images = np.empty((len(self.samples), size, size), np.uint8)
            self._masks = np.empty((len(self.samples), size, (size + 7) // 8), np.uint8)
            for i, sample in enumerate(self.samples):
                self._images[i], mask = _load_pair(sample, size)
                self._masks[i] = np.packbits(mask, axis=1)

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose augmentation is drawn from now on, also in running workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def arrays(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Item i before the transform: picture uint8 (H, W), mask bool (H, W); copies, safe to write to."""
        if self._images is not None:
            return self._images[i].copy(), np.unpackbits(self._masks[i], axis=1, count=self.size).view(bool)
        return _load_pair(self.samples[i], self.size)

    def __getitem__(self, i: int) -> dict:
        i = range(len(self.samples))[i]  # IndexError past the end; -1 is the last one and seeds as such
        image, mask = self._layers(i)
        report, plan, transform = self.samples[i].report, Plan(), self.transform
        if transform is not None:
            rng = item_generator(self.seed, int(self._epoch), i)
            if self.size is not None and transform.join and torch.rand((), generator=rng) < transform.join:
                other = int(torch.randint(len(self.samples), (), generator=rng))
                if reports.understood(report):  # else the data set speaks another grammar, and no sentence of ours fits it
                    image, mask = joined(image, mask, *self._layers(other))
                    report = reports.describe(mask[0] > 0)
            image, mask, report, plan = transform.prepare(torch.from_numpy(image), torch.from_numpy(mask), report, rng)
        return dict(image=torch.as_tensor(image), mask=torch.as_tensor(mask), report=report, name=self.samples[i].name, index=i, plan=plan)

    def _layers(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture (1, H, W), and mask with the teacher's answer where there is one (1 or 2, H, W); uint8."""
        image, mask = self.arrays(i)
        layers = [mask.view(np.uint8)] if self.answers is None else [mask.view(np.uint8), self.answers[i]]
        return image[None], np.stack(layers)


def item_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """A generator that depends on nothing but (seed, epoch, index): not on workers, order or what came before."""
    digest = hashlib.blake2b(f"{seed},{epoch},{index}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def stack(items: list[dict]) -> dict:
    """Items side by side, as compact as they are: pairs uint8 (B, 2 or 3, H, W), a picture and its mask; all else as lists.

    What workers send: one tensor, since each of them costs the process that gets it a question to a busy worker.

    DataError where the sizes differ (size=None with a batch of several).
    """
    sizes = {tuple(x["image"].shape[-2:]) for x in items}
    if len(sizes) > 1:
        raise DataError(f"A batch needs pictures of one size, got {sorted(sizes)}. Give ReferringDataset a size, or "
                        f"take batches of one.")
    return dict(pairs=torch.stack([torch.cat([x["image"], x["mask"]]) for x in items]),
                reports=[x["report"] for x in items],
                names=[x["name"] for x in items],
                plans=[x["plan"] for x in items],
                indices=[x["index"] for x in items])


def finish(stacked: dict, device: str | torch.device = "cpu") -> dict:
    """A batch of `stack` as a network takes it, its plans carried out on `device`: images float32 (B, 3, H, W) in
    [0, 1] (grey repeated; a view, so copy before writing in place), masks float32 (B, 1, H, W) of 0 and 1, both there;
    reports and names list[str], indices int64 (B,)."""
    pairs = stacked["pairs"].to(device, non_blocking=True)
    images, masks = render(pairs[:, :1], pairs[:, 1:], stacked["plans"])
    batch = dict(images=images.div_(255).expand(-1, 3, -1, -1), masks=masks[:, :1], reports=stacked["reports"], names=stacked["names"],
                 indices=torch.tensor(stacked["indices"]))
    return {**batch, "answers": masks[:, 1:] / 255} if masks.shape[1] > 1 else batch


def collate(items: list[dict]) -> dict:
    """A batch of items, as `finish` gives it, on the CPU."""
    return finish(stack(items))


def _load_pair(sample, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Picture uint8 and mask bool of a sample, both (size, size), or at their own size for size=None."""
    image, mask = load_image(sample.image), load_mask(sample.mask)
    if image.shape != mask.shape:
        def pixels(a):
            return f"{a.shape[1]}×{a.shape[0]}"
        raise DataError(f"{Path(sample.image)} is {pixels(image)} pixels, its mask {Path(sample.mask)} {pixels(mask)}. "
                        f"A mask must have its picture's size.")
    if size is None or image.shape == (size, size):
        return np.array(image), np.array(mask)
    return (np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)),  # Pillow antialiases
            np.array(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST)))
