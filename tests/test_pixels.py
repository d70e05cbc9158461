"""What augmentation does to pixels in batches, against torchvision and `acquisition`, picture by picture."""
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2 import InterpolationMode

from causalclipseg import acquisition
from causalclipseg.config import TrainingConfig
from causalclipseg.data import ReferringDataset, TrainTransform, collate, finish, find_samples, item_generator, stack
from causalclipseg.data.pixels import IN_CACHE, Plan, render
from causalclipseg.feeding import Feed

SIZE = 48


def pictures(count, seed=0):
    """Smooth random pictures, as uint8 (B, 1, H, W), and masks of one block each."""
    draw = torch.Generator().manual_seed(seed)
    rough = torch.rand(count, 1, 8, 8, generator=draw)
    images = (torch.nn.functional.interpolate(rough, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1) * 255).byte()
    masks = torch.zeros(count, 1, SIZE, SIZE, dtype=torch.uint8)
    masks[:, :, 20:40, 6:22] = 1
    return images, masks


def away(a, b):
    """The largest difference in grey values."""
    return float((a.float() - b.float()).abs().max())


PLANS = [
    Plan(), Plan(turn=12.0, shift=(0.05, -0.03), scale=1.2), Plan(turn=-15.0, scale=0.8), Plan(tone="exposure", amount=0.7, odd=True),
    Plan(tone="contrast", amount=0.4), Plan(tone="blur", amount=0.013), Plan(tone="noise", amount=0.04, seed=5), Plan(gamma=1.3, contrast=0.8, brightness=1.2),
    Plan(blur=0.7), Plan(noise=6.0, seed=9), Plan(turn=3.0, gamma=0.8, blur=1.0, noise=3.0, seed=2), Plan(tone="blur", amount=0.004),
]  # fmt: skip


def test_a_picture_gets_its_own_plan_whatever_else_the_batch_holds():
    images, masks = pictures(len(PLANS))
    whole = render(images, masks, PLANS)
    assert whole[0].shape == images.shape and len(PLANS) > 2 * IN_CACHE
    assert torch.equal(whole[0][0], images[0].float()) and torch.equal(whole[1][0], masks[0].float()), "an empty plan changes nothing"
    for i, plan in enumerate(PLANS):
        alone = render(images[i : i + 1], masks[i : i + 1], [plan])
        assert torch.equal(alone[0][0], whole[0][i]) and torch.equal(alone[1][0], whole[1][i]), plan
    backwards = render(images.flip(0), masks.flip(0), PLANS[::-1])
    assert torch.equal(backwards[0].flip(0), whole[0]) and torch.equal(backwards[1].flip(0), whole[1])
    assert torch.equal(whole[0], whole[0].round()) and 0 <= whole[0].min() and whole[0].max() <= 255 and whole[1].unique().tolist() == [0, 1]


@pytest.mark.parametrize("plan", [Plan(turn=15.0, shift=(0.08, -0.05), scale=0.75), Plan(turn=-7.0, scale=1.3), Plan(shift=(0.0, 0.04))])
def test_geometry_is_torchvisions(plan):
    images, masks = pictures(1)
    moved, cut = render(images, masks, [plan])
    how = dict(angle=plan.turn, translate=[SIZE * s for s in plan.shift], scale=plan.scale, shear=[0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
    assert away(moved, F.affine(images, **how)) <= 1
    differ = cut != (F.affine(masks * 255, **how) > 127)
    assert differ.sum() <= 2, "where exactly half a pixel is lesion"


@pytest.mark.parametrize("plan, theirs", [
    (Plan(gamma=1.3), lambda x: F.adjust_gamma(x, 1.3)), (Plan(gamma=0.7), lambda x: F.adjust_gamma(x, 0.7)),
    (Plan(contrast=0.7), lambda x: F.adjust_contrast(x, 0.7)), (Plan(contrast=1.3), lambda x: F.adjust_contrast(x, 1.3)),
    (Plan(brightness=1.3), lambda x: F.adjust_brightness(x, 1.3)), (Plan(blur=0.9), lambda x: F.gaussian_blur(x, [5, 5], [0.9, 0.9])),
])  # fmt: skip
def test_tones_are_torchvisions(plan, theirs):
    images, masks = pictures(2)
    assert away(render(images, masks, [plan] * 2)[0], theirs(images)) <= 1.5, "they cut grey values off, we round them"


@pytest.mark.parametrize("name", ["exposure", "contrast", "blur", "noise"])
@pytest.mark.parametrize("seed", [4, 5])
def test_edits_are_those_of_a_single_picture(name, seed):
    images, masks = pictures(1)
    theirs = torch.from_numpy(acquisition.edit(images[0, 0].numpy(), name, 0.6, seed=seed).image)
    plan = Plan(tone=name, amount=acquisition.amount_of(name, 0.6), odd=seed % 2 == 1, seed=seed)
    ours = render(images, masks, [plan])[0][0, 0]
    if name == "noise":  # other grain, as coarse and as strong
        ours, theirs = ours - images[0, 0], theirs.float() - images[0, 0]
        assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.1) and abs(ours.mean()) < 1
        beside = [float(torch.corrcoef(torch.stack([x[:, 1:].flatten(), x[:, :-1].flatten()]))[0, 1]) for x in (ours, theirs)]
        assert beside[0] == pytest.approx(beside[1], abs=0.1)
    else:
        assert away(ours, theirs) <= 1


def test_every_edit_of_tones_can_be_done_in_batches():
    from causalclipseg.data.pixels import TONES

    assert TONES.keys() == {name for name, edit in acquisition.EDITS.items() if not edit.overlay}


def test_noise_has_the_strength_that_is_asked_for_and_depends_on_its_seed():
    images, masks = torch.full((3, 1, SIZE, SIZE), 128, dtype=torch.uint8), torch.zeros(3, 1, SIZE, SIZE, dtype=torch.uint8)
    noisy = render(images, masks, [Plan(noise=8.0, seed=1), Plan(noise=8.0, seed=2), Plan(noise=8.0, seed=1)])[0]
    assert torch.equal(noisy[0], noisy[2]) and not torch.equal(noisy[0], noisy[1])
    assert float(noisy.std()) == pytest.approx(8, rel=0.05) and float(noisy.mean()) == pytest.approx(128, abs=0.5)


def test_what_is_drawn_over_a_picture_keeps_off_the_lesion_where_that_has_gone():
    """Overlays are drawn beside the moved lesion; nothing is moved a second time."""
    images, masks = pictures(1)
    transform = TrainTransform(SIZE, edit=1, tones=0, flip=0, exposure=0, noise=0, blur=0, refer=0, paraphrase=0, generic=0, none=0)
    still = TrainTransform(SIZE, edit=0, flip=0, exposure=0, noise=0, blur=0, refer=0, paraphrase=0, generic=0, none=0)
    drawn = 0
    for index in range(12):
        edited, mask, _ = transform(images[0], masks[0], "", item_generator(0, 0, index))
        moved, same, _ = still(images[0], masks[0], "", item_generator(0, 0, index))
        assert torch.equal(mask, same) and torch.equal(edited[mask > 0], moved[mask > 0])
        drawn += not torch.equal(edited, moved)
    assert drawn >= 8


def test_the_feed_sends_whole_bytes_and_its_finished_batches_do_not_depend_on_workers(phantom_folder):
    samples = find_samples(phantom_folder, "train")[:12]
    batches = {}
    for workers in (0, 2):
        data = ReferringDataset(samples, TrainTransform(64), size=64)
        feed = Feed([data], TrainingConfig(batch_size=6, workers=workers))
        batches[workers] = [part for epoch in (0, 1) for parts in feed.epoch(epoch, 64) for part in parts]
        assert len(batches[workers]) == 4
    for a, b in zip(batches[0], batches[2]):
        assert a["pairs"].dtype == torch.uint8 and a["pairs"].shape == (6, 2, 64, 64) and a["plans"] == b["plans"]
        first, second = finish(a), finish(b)
        assert torch.equal(first["images"], second["images"]) and torch.equal(first["masks"], second["masks"]) and first["reports"] == second["reports"]
    items = [ReferringDataset(samples, TrainTransform(64), size=64)[i] for i in (3, 1)]
    assert torch.equal(collate(items)["images"], finish(stack(items))["images"]) and np.isclose(float(collate(items)["images"].max()), 1, atol=0.3)
