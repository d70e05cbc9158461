"""Contrastive pre-training: it learns, it repeats itself, and segmentation starts from what it wrote."""
import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from causalclipseg import pretraining
from causalclipseg.baselines import build_model
from causalclipseg.config import ModelConfig, TrainingConfig
from causalclipseg.data import DataError, ReferringDataset, TrainTransform, collate, data_digest, find_samples
from causalclipseg.encoders import build_clip, standardized, tokenize
from causalclipseg.pretraining import _batches, check_rule, matching, pretrain
from causalclipseg.training import train
from conftest import make_tiny_config


@pytest.fixture(scope="module")
def pretrained(phantom_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("clip") / "clip"
    return out, pretrain([phantom_folder], out, make_tiny_config(), steps=60, batch_size=16, lr=3e-3)


def test_the_loss_falls_and_the_folder_says_how_it_came_about(pretrained, phantom_folder):
    out, about = pretrained
    assert json.loads((out / "pretraining.json").read_text()) == about
    assert sum(about["loss"][-10:]) / 10 < sum(about["loss"][:10]) / 10 - 0.2
    assert about["pictures"] == 36 and about["sentences"] == len({s.report for s in find_samples(phantom_folder, "train")})
    assert about["steps"] == 60 and about["seed"] == 0 and len(about["data_digest"]) == 64 and about["data"][0]["name"] == "phantoms"
    assert set(about["matching_after"]) == {"share", "chance", "of", "n"}


def test_segmentation_starts_from_it_at_any_picture_size(pretrained):
    out, _ = pretrained
    state = load_file(out / "clip.safetensors")
    for size in (64, 96):
        model = build_model(make_tiny_config(image_size=size), weights=str(out))
        assert torch.equal(model.text_encoder.text_projection, state["text_projection"])
        assert torch.equal(model.vision_encoder.net.layer3[0].conv1.weight, state["visual.layer3.0.conv1.weight"])
    with pytest.raises(ValueError, match="does not fit"):
        build_model(make_tiny_config(context_length=30), weights=str(out))


def test_a_run_of_another_split_rule_does_not_start_from_it(phantom_folder, tmp_path):
    clip, data = tmp_path / "clip", [str(phantom_folder)]
    about = pretrain(data, clip, make_tiny_config(), steps=1, batch_size=4, split_rule="patients")
    samples = find_samples(phantom_folder, "train", rule="patients")
    assert (about["split_rule"], about["data"][0]["split_rule"], about["data_digest"]) == ("patients", "disjoint by patient", data_digest(samples))
    for source in (clip, clip / "clip.safetensors"):
        assert check_rule(str(source), "patients") == ""
        with pytest.raises(ValueError, match="pre-trained with split_rule=patients.*pre-train with --split-rule published, or train with split_rule=patients"):
            check_rule(str(source), "published")
    assert check_rule("none", "patients") == check_rule("openai", "patients") == check_rule("", "patients") == ""
    config = dict(weights=str(clip), epochs=1, batch_size=4, sizes=(), samples_every=0)
    with pytest.raises(ValueError, match="split_rule=patients"):
        train(data, tmp_path / "run", make_tiny_config(), TrainingConfig(**config), limit=4)
    assert not (tmp_path / "run").exists()
    del about["split_rule"]  # as pre-training wrote it when there was the published rule alone
    (clip / "pretraining.json").write_text(json.dumps(about))
    assert check_rule(str(clip), "published") == ""
    with pytest.warns(UserWarning, match="does not say by which split_rule it was pre-trained"):
        train(data, tmp_path / "run", make_tiny_config(), TrainingConfig(**config, split_rule="patients"), limit=4)


def test_the_same_seed_gives_the_same_weights_and_a_finished_folder_is_kept(phantom_folder, tmp_path):
    options = dict(steps=2, batch_size=8, limit=12)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pretrain([phantom_folder], tmp_path / name, make_tiny_config(), seed=seed, **options)
    a, b, c = (load_file(tmp_path / name / "clip.safetensors") for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["text_projection"], c["text_projection"])
    with pytest.raises(ValueError, match="already holds"):
        pretrain([phantom_folder], tmp_path / "a", make_tiny_config(), **options)
    for wrong, words in ((dict(steps=0), "steps"), (dict(precision="fp8"), "precision")):
        with pytest.raises(ValueError, match=words):
            pretrain([phantom_folder], tmp_path / "d", make_tiny_config(), **wrong)


def test_a_batch_holds_each_sentence_once_also_after_mirroring(phantom_folder):
    data = ReferringDataset(find_samples(phantom_folder, "train"), TrainTransform(64, refer=0, generic=0, none=0, paraphrase=0), size=64)
    sizes = set()
    for batch in _batches(data, 16, 12, seed=0):
        assert len(set(batch["reports"])) == len(batch["reports"]) == len(batch["images"])
        sizes.add(len(batch["reports"]))
    assert max(sizes) <= min(16, len({s.report for s in data.samples}))
    first, again = (next(_batches(data, 16, 1, seed=0)) for _ in range(2))
    assert first["reports"] == again["reports"] and torch.equal(first["images"], again["images"])


def test_a_clip_whose_sentences_have_another_length_says_so(phantom_folder, tmp_path):
    with pytest.raises(ValueError, match="sentences of 77 tokens, as it was trained: set context_length=77"):
        pretrain([phantom_folder], tmp_path / "out", ModelConfig(encoder="RN50"), steps=1, batch_size=2)


def test_one_sentence_is_no_contrast_and_a_loss_that_is_no_number_stops_the_run(phantom_folder, tmp_path):
    with pytest.raises(DataError, match="at least two different sentences"):
        pretrain([phantom_folder], tmp_path / "out", make_tiny_config(), steps=1, batch_size=2, limit=1)
    with pytest.raises(ValueError, match="contrastive loss became (nan|inf) at step [2-4]; lower the learning rate"):
        pretrain([phantom_folder], tmp_path / "out", make_tiny_config(), steps=4, batch_size=4, limit=8, lr=1e30)
    assert not (tmp_path / "out" / "clip.safetensors").exists()


def test_the_loss_is_the_cross_entropy_of_both_directions(phantom_folder, tmp_path):
    about = pretrain([phantom_folder], tmp_path / "clip", make_tiny_config(), steps=1, batch_size=8, seed=3)
    torch.manual_seed(3)
    clip = build_clip(make_tiny_config()).train()
    edits = TrainTransform(64, refer=0, generic=0, none=0, paraphrase=0)
    batch = next(_batches(ReferringDataset(find_samples(phantom_folder, "train"), edits, size=64, seed=3), 8, 1, seed=3))
    with torch.no_grad():
        pictures, sentences = clip.encode_image(standardized(batch["images"])), clip.encode_text(tokenize(batch["reports"], 24)[0])
        scores = clip.logit_scale.exp() * F.normalize(pictures) @ F.normalize(sentences).T
    places = torch.arange(len(scores))
    plain = (F.cross_entropy(scores, places) + F.cross_entropy(scores.T, places)) / 2
    assert about["loss"] == [pytest.approx(plain.item(), abs=1e-4)]


def test_matching_counts_pictures_whose_own_sentence_is_nearest(phantom_folder, monkeypatch):
    data = ReferringDataset(find_samples(phantom_folder, "train"), size=64)
    assert matching(None, None, None) is None
    reports = sorted({s.report for s in data.samples})

    class Oracle:
        """Sentences are one-hot; pictures get their own sentence's place, or always the first one's."""

        logit_scale = torch.zeros(1)

        def eval(self):
            return self

        def encode_text(self, tokens, normalize):
            return torch.eye(len(reports))[[self.known[tuple(t.tolist())] for t in tokens]]

        def encode_image(self, images, normalize):
            return torch.eye(len(reports))[[self.shown[image.numpy().tobytes()] if self.good else 0 for image in images]]

    oracle = Oracle()
    oracle.known = {tuple(tokenize([r], 24)[0][0].tolist()): k for k, r in enumerate(reports)}
    oracle.shown = {standardized(collate([data[i]])["images"])[0].numpy().tobytes(): reports.index(s.report) for i, s in enumerate(data.samples)}
    for oracle.good, share in ((True, 1.0), (False, None)):
        found = matching(oracle, data, make_tiny_config(), choices=4)
        assert found["of"] == 4 and found["n"] % 4 == 0 and found["chance"] == 0.25
        assert found["share"] == (share or 0.25)
    assert pretraining.PRETRAINED_FILE == "clip.safetensors"
