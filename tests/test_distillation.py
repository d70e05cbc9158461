"""A teacher's answers: what they are, that they go where the masks go, and that a run learns with them."""
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from causalclipseg import reports
from causalclipseg.config import TrainingConfig
from causalclipseg.data import ReferringDataset, TrainTransform, collate, find_samples
from causalclipseg.distillation import teach, teachers
from causalclipseg.model import CausalCLIPSeg
from causalclipseg.training import train
from conftest import make_tiny_config


@torch.inference_mode()
def test_an_answer_is_the_mean_over_a_picture_and_its_mirror_image(phantom_folder, tiny_model_dir):
    data = ReferringDataset(find_samples(phantom_folder, "val"), size=64)
    teach([data], str(tiny_model_dir), Accelerator(cpu=True))
    assert data.answers.shape == (9, 64, 64) and data.answers.dtype == np.uint8
    model, item = CausalCLIPSeg.from_pretrained(tiny_model_dir), data[4]
    image = item["image"][None].float().expand(-1, 3, -1, -1) / 255
    answer = lambda x, sentence: model(x, model.tokenize([sentence])[0]).logits.sigmoid()
    q = (answer(image, item["report"]) + answer(image.flip(-1), reports.swap_sides(item["report"])).flip(-1)) / 2
    assert np.abs(data.answers[4] / 255 - q[0, 0].numpy()).max() < 0.02  # bf16
    assert torch.equal(item["mask"][1], torch.from_numpy(data.answers[4]))


@torch.inference_mode()
def test_several_teachers_answer_with_their_mean(phantom_folder, tiny_model_dir, tmp_path):
    torch.manual_seed(1)
    CausalCLIPSeg(make_tiny_config()).save_pretrained(tmp_path)
    data, answers = ReferringDataset(find_samples(phantom_folder, "val"), size=64), []
    for teacher in (str(tiny_model_dir), str(tmp_path), f"{tiny_model_dir}, {tmp_path}"):
        teach([data], teacher, Accelerator(cpu=True))
        answers.append(data.answers.astype(float))
    one, other, mean = answers
    assert np.abs(one - other).max() > 2 and np.abs((one + other) / 2 - mean).max() <= 1


def test_a_folder_whose_name_holds_a_comma_is_one_teacher(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert teachers(str(tmp_path / "a,b")) == [str(tmp_path / "a,b")]
    assert teachers("me/a, me/b") == ["me/a", "me/b"] and teachers("") == []


@pytest.mark.parametrize("size", [64, 32])
def test_answers_go_where_the_masks_go(phantom_folder, size):
    """Answers that equal the masks stay equal to them under flips, cuts, warps and drawing, but for the blur of a warp."""
    samples = find_samples(phantom_folder, "train")
    data = ReferringDataset(samples, TrainTransform(size, refer=0.5, edit=0.6), size=64)
    data.answers = np.stack([255 * data.arrays(i)[1].astype(np.uint8) for i in range(len(data))])
    batch = collate([data[i] for i in range(len(data))])
    assert batch["masks"].shape == batch["answers"].shape == (36, 1, size, size) and batch["answers"].max() <= 1
    assert torch.equal((batch["answers"] >= 0.5).float(), batch["masks"])
    data.answers = None
    without = collate([data[i] for i in range(len(data))])
    assert "answers" not in without and torch.equal(without["masks"], batch["masks"]) and torch.equal(without["images"], batch["images"])


def test_a_run_learns_from_answers(phantom_folder, tiny_model_dir, tmp_path):
    config = TrainingConfig(epochs=1, batch_size=12, sizes=(), teacher=str(tiny_model_dir), distill=1.0, samples_every=0)
    data, model = [str(phantom_folder)], make_tiny_config()
    taught = train(data, tmp_path / "taught", model, config, quiet=True)
    plain = train(data, tmp_path / "plain", model, TrainingConfig(epochs=1, batch_size=12, sizes=(), samples_every=0), quiet=True)
    one, two = (CausalCLIPSeg.from_pretrained(run / "last").state_dict() for run in (taught, plain))
    assert any(not torch.equal(one[key], two[key]) for key in one)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match="distill must lie between 0 and 1"):
        TrainingConfig(distill=1.5)
