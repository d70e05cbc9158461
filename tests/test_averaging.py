"""The mean of several models' weights, and one model that holds several for the mean of their answers."""
import json

import pytest
import torch
from causalclipseg import CausalCLIPSeg, averaging, growth, reports
from causalclipseg.checkpoints import kept_settings
from causalclipseg.data import ReferringDataset, find_samples
from causalclipseg.data.transforms import TrainTransform
from causalclipseg.evaluation import networks_of, predictor
from causalclipseg.views import answering, averaged, together

from conftest import lively
from conftest import make_tiny_config as tiny_config

SENTENCES = ["Unilateral pulmonary infection, one infected area, lower left lung.", ""]


def test_the_mean_is_the_mean_of_every_weight(tmp_path):
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(CausalCLIPSeg(tiny_config()))
        with torch.no_grad():
            for buffer in models[-1].buffers():
                if buffer.is_floating_point():
                    buffer.add_(seed)
        models[-1].save_pretrained(tmp_path / str(seed))
    averaging.average([tmp_path / str(seed) for seed in range(3)], tmp_path / "mean")
    mean = CausalCLIPSeg.from_pretrained(tmp_path / "mean").state_dict()
    for key, value in mean.items():
        each = torch.stack([model.state_dict()[key].double() for model in models])
        torch.testing.assert_close(value.double(), each.mean(0).to(value.dtype).double())


def test_what_has_no_mean_is_refused(tmp_path):
    CausalCLIPSeg(tiny_config()).save_pretrained(tmp_path / "a")
    CausalCLIPSeg(tiny_config(intervention=False)).save_pretrained(tmp_path / "b")
    with pytest.raises(ValueError, match="at least two"):
        averaging.average([tmp_path / "a"], tmp_path / "mean")
    with pytest.raises(ValueError, match="other settings"):
        averaging.average([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_a_folder_that_holds_something_is_not_written_over_and_how_parts_were_trained_is_kept(tmp_path):
    for name, splits in (("a", ["train"]), ("b", ["train", "val"])):
        CausalCLIPSeg(tiny_config()).save_pretrained(tmp_path / name)
        (tmp_path / name / "training.json").write_text(json.dumps({"train_splits": splits, "split_rule": "patients"}))
    before = (tmp_path / "a" / "model.safetensors").read_bytes()
    for join in (averaging.average, averaging.ensemble):
        with pytest.raises(ValueError, match="already there and not empty"):
            join([tmp_path / "a", tmp_path / "b"], tmp_path / "a")
        join([tmp_path / "a", tmp_path / "b"], tmp_path / join.__name__)
        assert kept_settings(tmp_path / join.__name__) == {"train_splits": ["train", "val"], "split_rule": "patients"}
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before
    about = {"train_splits": ["train"], "split_rule": "patients", "inherited": {"train_splits": ["train", "val"], "split_rules": ["published"]}}
    (tmp_path / "b" / "training.json").write_text(json.dumps(about))
    averaging.average([tmp_path / "a", tmp_path / "b"], tmp_path / "heirs")
    assert kept_settings(tmp_path / "heirs") == about, "what one of them started from is not forgotten"
    (tmp_path / "b" / "training.json").unlink()
    averaging.average([tmp_path / "a", tmp_path / "b"], tmp_path / "unknown")
    assert kept_settings(tmp_path / "unknown") == {}


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Three networks, of two shapes, and the model that holds them."""
    folder, networks = tmp_path_factory.mktemp("ensemble"), []
    for seed, settings in enumerate(({}, {"decoder": "plain", "standardize": False}, {"intervention": False})):
        torch.manual_seed(seed)
        networks.append(lively(CausalCLIPSeg(tiny_config(**settings))))
        networks[-1].save_pretrained(folder / str(seed))
        networks[-1].save_pretrained(folder / f"stored{seed}", dtype=torch.int8)
        networks[-1] = CausalCLIPSeg.from_pretrained(folder / f"stored{seed}")
    averaging.ensemble([folder / str(seed) for seed in range(3)], folder / "all")
    return networks, CausalCLIPSeg.from_pretrained(folder / "all")


def test_an_ensemble_is_its_first_network_until_the_mean_is_asked_for(joined):
    networks, whole = joined
    images, tokens = torch.rand(2, 3, 64, 64), whole.tokenize(SENTENCES)[0]
    for one, other in zip(whole(images, tokens, confounder=True)[:2], networks[0](images, tokens, confounder=True)[:2]):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    mean = sum(predictor(network)(images, SENTENCES) for network in networks) / 3
    torch.testing.assert_close(predictor(whole, companions=True)(images, SENTENCES), mean)
    views = [averaged(predictor(network))(images, SENTENCES) for network in networks]
    torch.testing.assert_close(answering(whole, average_views=True)(images, SENTENCES), together(views))


def test_a_network_for_pictures_without_a_sentence_is_asked_only_there(joined, tmp_path):
    networks, whole = joined
    torch.manual_seed(9)
    lively(CausalCLIPSeg(tiny_config(decoder="plain"))).save_pretrained(tmp_path / "wordless")
    for k, network in enumerate(networks[:2]):
        network.save_pretrained(tmp_path / str(k))
    averaging.ensemble([tmp_path / "0", tmp_path / "1"], tmp_path / "two")
    averaging.ensemble([tmp_path / "0", tmp_path / "1"], tmp_path / "three", silent=tmp_path / "wordless")
    two, three = (CausalCLIPSeg.from_pretrained(tmp_path / name) for name in ("two", "three"))
    assert three.silent.confounder is None and networks_of(three) == [three, *three.companions] and len(three.further) == 2
    images, shown = torch.rand(3, 3, 64, 64), [SENTENCES[0], "", "  "]
    spoken, found = (answering(model, average_views=True)(images, shown) for model in (two, three))
    torch.testing.assert_close(found[0], spoken[0], rtol=0, atol=0)
    alone = averaged(predictor(three.silent))(images[1:], ["", ""])
    torch.testing.assert_close(found[1:], (spoken[1:] + alone) / 2)
    assert not torch.allclose(found[1:], spoken[1:], atol=1e-3)
    table = three.silent.text_encoder.token_embedding.weight
    assert (table != 0).any(1).sum() == 3, "it reads SOT, EOT and the padding"
    for predict in (predictor, answering):  # in one view the first network answers, whatever is in the file
        torch.testing.assert_close(predict(three)(images, shown), predict(two)(images, shown), rtol=0, atol=0)
    assert growth.grows(three.config, networks[0].config)
    fresh = CausalCLIPSeg(networks[0].config)
    assert growth.grown(three.state_dict(), fresh.state_dict()).keys() == fresh.state_dict().keys()
    with pytest.raises(ValueError, match="none of their own"):
        averaging.ensemble([tmp_path / "0", tmp_path / "1"], tmp_path / "nested", silent=tmp_path / "three")


def test_only_the_network_without_a_sentence_is_exchanged(tmp_path):
    for k, name in enumerate(("a", "b", "wordless", "other")):
        torch.manual_seed(20 + k)
        lively(CausalCLIPSeg(tiny_config())).save_pretrained(tmp_path / name)
    pair = [tmp_path / "a", tmp_path / "b"]
    averaging.ensemble(pair, tmp_path / "first", silent=tmp_path / "wordless", bits=4)
    averaging.ensemble(pair, tmp_path / "second", silent=tmp_path / "other", bits=4)
    averaging.ensemble([tmp_path / "first"], tmp_path / "exchanged", silent=tmp_path / "other", bits=4)
    averaging.ensemble(pair, tmp_path / "none", bits=4)
    averaging.ensemble([tmp_path / "none"], tmp_path / "added", silent=tmp_path / "other", bits=4)
    for name in ("exchanged", "added"):
        for file in ("model.safetensors", "config.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), (name, file)
    with pytest.raises(ValueError, match="stays as it is stored"):
        averaging.ensemble([tmp_path / "first"], tmp_path / "out", data=["somewhere"], silent=tmp_path / "other")
    with pytest.raises(ValueError, match="none of their own"):
        averaging.ensemble([tmp_path / "a"], tmp_path / "out", silent=tmp_path / "first")
    assert not (tmp_path / "out").exists()


def test_large_weights_of_further_networks_can_be_stored_in_4_bits(joined, tmp_path, monkeypatch):
    networks, whole = joined
    monkeypatch.setattr("causalclipseg.model.LARGE", 1000)
    for k, network in enumerate(networks):
        network.save_pretrained(tmp_path / str(k))
    averaging.ensemble([tmp_path / str(k) for k in range(3)], tmp_path / "all", bits=4)
    again = CausalCLIPSeg.from_pretrained(tmp_path / "all")
    images, tokens = torch.rand(1, 3, 64, 64), whole.tokenize(SENTENCES[:1])[0]
    torch.testing.assert_close(again(images, tokens).logits, whole(images, tokens).logits, rtol=0, atol=0)
    given = dict(networks[1].named_parameters())
    for name, found in again.companions[0].named_parameters():
        value = given[name]
        step = value.flatten(1).abs().amax(1) / (7 if value.numel() >= 1000 else 127) if value.ndim > 1 else torch.zeros(1)
        assert ((found - value).flatten(1 if value.ndim > 1 else 0).abs() <= 0.501 * step.view(-1, *[1] * (value.ndim > 1)) + 1e-6).all(), name


def test_companions_are_left_behind_by_a_run_that_starts_there(joined):
    networks, whole = joined
    assert growth.grows(whole.config, networks[0].config)
    fresh = CausalCLIPSeg(networks[0].config)
    fresh.load_state_dict(growth.grown(whole.state_dict(), fresh.state_dict()))
    for one, other in zip(fresh.parameters(), networks[0].parameters()):
        torch.testing.assert_close(one, other)


def test_tokens_that_no_sentence_uses_take_no_room(joined, phantom_folder, tmp_path):
    networks, _ = joined
    for k, network in enumerate(networks[:2]):
        network.save_pretrained(tmp_path / str(k))
    folders = [tmp_path / "0", tmp_path / "1"]
    averaging.ensemble(folders, tmp_path / "all")
    averaging.ensemble(folders, tmp_path / "met", data=[phantom_folder])
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("all", "met")]
    assert sizes[0] - sizes[1] > 2 * 40_000 * networks[0].config.clip.text_width
    a, b = (CausalCLIPSeg.from_pretrained(tmp_path / name) for name in ("all", "met"))
    shown = [SENTENCES[0], reports.GENERIC]
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(predictor(a, companions=True)(images, shown), predictor(b, companions=True)(images, shown))


def test_the_sentences_that_training_draws_are_met(phantom_folder):
    model = CausalCLIPSeg(tiny_config())
    met = set(model.tokenize(averaging.training_sentences([phantom_folder]))[0].unique().tolist())
    transform = TrainTransform(refer=0.3, healthy=0.5, restate=0.5, paraphrase=0.5, generic=0.05, none=0.05, join=0.5)
    drawn = {*(f"Bilateral pulmonary infection, {word} infected areas." for word in (*reports.NUMBERS[2:], *range(10, 16)))}  # of two patients joined
    items = ReferringDataset(find_samples(phantom_folder, "train"), size=32, transform=transform)
    for epoch in range(5):
        items.set_epoch(epoch)
        drawn |= {items[i]["report"] for i in range(len(items))}
    assert set(model.tokenize(sorted(drawn))[0].unique().tolist()) <= met
    assert len(met) < 200


def test_what_is_no_ensemble_is_refused(joined, tmp_path):
    networks, whole = joined
    networks[0].save_pretrained(tmp_path / "one")
    whole.save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="at least two"):
        averaging.ensemble([tmp_path / "one"], tmp_path / "out")
    for pair in (("one", "three"), ("three", "one")):
        with pytest.raises(ValueError, match="none of their own"):
            averaging.ensemble([tmp_path / name for name in pair], tmp_path / "out")
    assert not (tmp_path / "out").exists()
