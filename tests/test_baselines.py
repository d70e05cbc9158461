"""The networks that CausalCLIPSeg is compared with: one interface, one loop, one way to save and load."""
import sys
from dataclasses import replace

import pytest
import torch

from causalclipseg.baselines import ConcatNetwork, MonaiNetwork, build_model, load_model
from causalclipseg.config import BASELINES, ModelConfig, TrainingConfig, preset
from causalclipseg.evaluation import evaluate, predictor
from causalclipseg.model import CausalCLIPSeg
from causalclipseg.training import train
from conftest import make_tiny_config


def tiny(network):
    return make_tiny_config(network=network, preset=network, intervention=False, width=4)


@pytest.mark.parametrize("network", BASELINES)
def test_every_network_answers_like_ours_and_comes_back_from_its_folder(network, tmp_path):
    torch.manual_seed(0)
    model = build_model(tiny(network)).eval()
    images, (tokens, cut) = torch.rand(2, 3, 64, 96), model.tokenize(["left lung", ""])
    with torch.no_grad():
        out = model(images, tokens)
        assert out.logits.shape == (2, 1, 64, 96) and out.confounder_logits is None and out.masks == () and not any(cut)
        model.save_pretrained(tmp_path)
        again = load_model(tmp_path)
        assert type(again) is type(model) and again.config == model.config and not again.training
        assert torch.equal(again(images, tokens).logits, out.logits)
        swapped = model(images, tokens.flip(0)).logits
    assert torch.equal(swapped, out.logits) == network.startswith("monai:"), "only the text-guided one reads the sentence"
    with pytest.raises(ValueError, match="confounder"):
        model(images, tokens, confounder=True)
    with pytest.raises(ValueError, match=f"{network}, no CausalCLIPSeg"):
        CausalCLIPSeg.from_pretrained(tmp_path)


def test_the_factory_builds_ours_too_and_its_weights_reach_the_encoders(tiny_model_dir, tmp_path):
    assert type(build_model(make_tiny_config())) is CausalCLIPSeg and type(load_model(tiny_model_dir)) is CausalCLIPSeg
    with pytest.raises(ValueError, match="leave weights at none"):
        build_model(tiny("monai:UNet"), weights="openai")
    from causalclipseg.encoders import build_clip

    torch.manual_seed(3)
    clip = build_clip(make_tiny_config())
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    model = build_model(tiny("concat"), weights=str(tmp_path / "clip.pt"))
    assert isinstance(model, ConcatNetwork)
    assert torch.equal(model.text_encoder.token_embedding.weight, clip.token_embedding.weight)
    assert torch.equal(model.vision_encoder.net.conv1.weight, clip.visual.conv1.weight)


def test_presets_and_settings_of_the_networks():
    for name in BASELINES:
        model, training = preset(name)
        assert model.network == model.preset == name and not model.intervention and training.objective == "none"
        assert (training.refer == 0) == name.startswith("monai:"), "who reads no sentence can't be asked for a part"
    assert ModelConfig().network == "causalclipseg"
    with pytest.raises(ValueError, match="no intervention"):
        ModelConfig(network="monai:UNet")
    with pytest.raises(ValueError, match='no network "monai:VNet"'):
        ModelConfig(network="monai:VNet", intervention=False)
    with pytest.raises(ValueError, match='"monai:VNet".*monai:UNet'):
        preset("monai:VNet")


def test_the_loop_trains_them_unchanged_and_they_learn_where_lesions_are(phantom_folder, tmp_path):
    """A U-Net that reads no sentence beats the answer "everything" and "nothing" after a few steps."""
    config = TrainingConfig(objective="none", epochs=8, batch_size=12, lr=1e-2, ema=0.0, sizes=(), evaluate_every=8, refer=0.0, edit=0.0)
    train([str(phantom_folder)], tmp_path / "unet", replace(tiny("monai:UNet"), width=8), config, quiet=True)
    network = load_model(tmp_path / "unet")
    assert isinstance(network, MonaiNetwork)
    found = evaluate(predictor(network), phantom_folder, model="unet", image_size=64, text="none")
    everything = evaluate(lambda images, reports: torch.ones(len(images), 1, 64, 64), phantom_folder, model="all", image_size=64)
    assert found["per_image"]["dice"]["mean"] > 1.2 * everything["per_image"]["dice"]["mean"] > 0


def test_the_first_layers_see_the_grey_picture_with_its_brightness():
    model = build_model(tiny("monai:UNet")).eval()
    seen = []
    model.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(torch.full((1, 3, 64, 64), 0.75), model.tokenize([""])[0])
    assert seen[0].shape == (1, 1, 64, 64) and seen[0].unique().tolist() == [1.0]


def test_without_monai_its_networks_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    with pytest.raises(ValueError, match="monai:UNet needs MONAI.*pip install monai"):
        build_model(tiny("monai:UNet"))
    assert type(build_model(tiny("concat"))) is ConcatNetwork
