"""From a batch to a loss: what the remedies need beyond one pass, and that they train from the command line."""
import json

import numpy as np
import pytest
import torch
from conftest import lively, make_tiny_config, tiny_changes

from causalclipseg.cli import main
from causalclipseg.config import TrainingConfig
from causalclipseg.data import DataError, find_samples
from causalclipseg.losses import batch_loss, picture_weights, under_do
from causalclipseg.model import CausalCLIPSeg
from causalclipseg.objectives import objective
from causalclipseg.phantoms import World, write_dataset


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("world") / "set", 60, seed=2, world=World(0.05, "side", size=64))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(3, 1, 64, 64)
    masks[:, :, 30:50, 10:25] = 1
    return {"images": torch.rand(3, 1, 64, 64, generator=generator).expand(-1, 3, -1, -1), "masks": masks, "names": list("abc"),
            "reports": ["Pulmonary infection.", "Infection of the left lung.", ""], "indices": torch.arange(3)}  # fmt: skip


def test_the_batch_under_do_keeps_its_form_and_repeats_with_the_seed(batch):
    torch.manual_seed(4)
    images, sentences = under_do(batch["images"], batch["reports"])
    torch.manual_seed(4)
    again, words = under_do(batch["images"], batch["reports"])
    assert torch.equal(images, again) and sentences == words
    assert images.shape == batch["images"].shape and 0 <= images.min() and images.max() <= 1 and not torch.equal(images, batch["images"])
    assert torch.equal(images[:, 0], images[:, 2]) and sentences[2] == ""


def test_interventional_is_the_objective_over_both_passes(batch):
    torch.manual_seed(0)
    model, config = CausalCLIPSeg(make_tiny_config()).eval(), TrainingConfig(objective="interventional", mu=3.0)
    torch.manual_seed(5)
    loss, logits = batch_loss(model, batch, "interventional", config)
    torch.manual_seed(5)
    images, sentences = under_do(batch["images"], batch["reports"])
    run = lambda x, s: model(x, model.tokenize(s)[0]).logits
    expected = objective("interventional", run(batch["images"], batch["reports"]), None, batch["masks"], dice_weight=config.dice_weight,
                         edited_logits=run(images, sentences), mu=3.0)  # fmt: skip
    torch.testing.assert_close(loss.total, expected.total)


@pytest.mark.parametrize("name, changes, teacher", [
    ("causal", dict(lam=0.7), False), ("bounded", dict(lam=0.7, cap=0.01), False), ("bounded", dict(cap=9.0), False), ("minimax", dict(lam=0.7), False),
    ("none", dict(dice_weight=0.3), False), ("none", dict(distill=0.9), True),
])  # fmt: skip
def test_each_weight_of_the_loss_is_the_one_that_was_set(batch, name, changes, teacher):
    torch.manual_seed(0)
    model = lively(CausalCLIPSeg(make_tiny_config())).eval()
    if teacher:
        batch["answers"] = torch.rand(3, 1, 64, 64)

    def with_gradients(loss):
        model.zero_grad()
        loss.total.backward()
        return [loss.total.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters())]

    got, usual = (with_gradients(batch_loss(model, batch, name, TrainingConfig(**given))[0]) for given in (changes, {}))
    weights = {**dict(lam=0.05, cap=0.37, dice_weight=1.0, distill=0.5), **changes}
    both = name != "none"
    output = model(batch["images"], model.tokenize(batch["reports"])[0], confounder=both, reversal=weights["lam"] if name == "minimax" else None)
    expected = with_gradients(objective(name, output.logits, output.confounder_logits, batch["masks"], answers=batch.get("answers"), **weights))
    torch.testing.assert_close(got, expected)
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(got, usual)), "and it matters"


def test_weights_come_from_ward_and_lung_in_a_world(world_folder):
    samples = find_samples(world_folder, "train")
    weights = picture_weights(samples)
    about = {p["image"].removesuffix(".png"): p for p in json.loads((world_folder / "phantoms.json").read_text())["pictures"]}
    rows = np.array([(about[s.name]["W"], about[s.name]["L"], weights[s.name]) for s in samples])
    for w in (0, 1):
        share = rows[rows[:, 0] == w, 2].sum() / rows[:, 2].sum()
        for side in (0, 1):
            both = rows[(rows[:, 0] == w) & (rows[:, 1] == side), 2].sum() / rows[:, 2].sum()
            assert both == pytest.approx(share * (rows[:, 1] == side).mean(), abs=1e-5)


def test_one_source_alone_cannot_be_adjusted_for(phantom_folder):
    with pytest.raises(DataError, match='two sources at least; all of these are "phantom"'):
        picture_weights(find_samples(phantom_folder, "train"))


def test_pictures_of_one_name_cannot_be_weighed(world_folder):
    samples = find_samples(world_folder, "train")
    with pytest.raises(DataError, match="tells pictures apart by name, and some names occur twice"):
        picture_weights([*samples, samples[0]])


@pytest.mark.parametrize("name", ["interventional", "adjusted"])
def test_the_command_line_trains_it(world_folder, tmp_path, name):
    settings = [part for setting in (*tiny_changes(), "epochs=1", "batch_size=8", "sizes=[]") for part in ("--set", setting)]
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--data", str(world_folder), "--objective", name, "--out", str(tmp_path / "run"), *settings])
    assert not stopped.value.code
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss_confounder"] == 0 and np.isfinite(line["loss"]) and (tmp_path / "run" / "model.safetensors").exists()
