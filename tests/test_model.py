"""The wiring: named outputs, what runs when, and save and load."""
import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from causalclipseg.config import ModelConfig, preset
from causalclipseg.encoders import build_encoders
from causalclipseg.masking import split
from causalclipseg.model import CausalCLIPSeg, dequantized, quantized, without_rows
from conftest import REPOSITORY, lively, make_tiny_config

REPORTS = ["Unilateral pulmonary infection, one infected area, lower left lung.", "Pulmonary infection."]


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return lively(CausalCLIPSeg(make_tiny_config(**changes))).eval()


def inputs(model, height=64, width=64):
    generator = torch.Generator().manual_seed(5)
    return torch.rand(len(REPORTS), 3, height, width, generator=generator), model.tokenize(REPORTS)[0]


@pytest.mark.parametrize("mask_channels", ["location", "channel"])
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
@torch.inference_mode()
def test_outputs_are_named_and_have_the_stated_shapes_and_ranges(mask_channels, size):
    model = build(mask_channels=mask_channels)
    out = model(*inputs(model, *size), confounder=True)
    assert out._fields == ("logits", "confounder_logits", "masks")
    for logits in (out.logits, out.confounder_logits):
        assert logits.shape == (2, 1, *size) and logits.isfinite().all() and logits.dtype == torch.float32
    for stride, channels, mask in zip((8, 16, 32), model.vision_encoder.channels, out.masks, strict=True):
        assert mask.shape == (2, channels if mask_channels == "channel" else 1, size[0] // stride, size[1] // stride)
        assert 0 <= mask.min() and mask.max() <= 1


@pytest.mark.parametrize("settings", [dict(kernel_size=1), dict(kernel_size=5), dict(upsampling_steps=0), dict(upsampling_steps=3)])
@torch.inference_mode()
def test_every_decoder_setting_gives_logits_at_input_size(settings):
    model = build(**settings)
    assert model(*inputs(model)).logits.shape == (2, 1, 64, 64)


@pytest.mark.parametrize("decoder", ["plain", "conditioned"])
@torch.inference_mode()
def test_the_model_is_its_parts_in_the_papers_order(decoder):
    model = build(decoder=decoder)
    images, tokens = inputs(model)
    tau, (first, *stages) = model.text_encoder(tokens), model.vision_encoder(images, fine=True)
    assert all(torch.equal(a, b) for a, b in zip(stages, model.vision_encoder(images)))
    masks = [masker(stage) for masker, stage in zip(model.maskers, stages)]
    halves = [split(stage, mask) for stage, mask in zip(stages, masks)]
    out = model(images, tokens, confounder=True)
    fine = F.interpolate(masks[0], size=(16, 16), mode="bilinear", align_corners=False)
    for branch, part, share, logits in ((model.causal, 0, fine, out.logits), (model.confounder, 1, 1 - fine, out.confounder_logits)):
        fused = branch.fusion([half[part] for half in halves])
        torch.testing.assert_close(branch.decoder(tau, fused, (64, 64), share * first), logits)
    assert all(torch.equal(a, b) for a, b in zip(masks, out.masks))


@torch.inference_mode()
def test_the_confounder_branch_runs_only_when_asked_for():
    model, calls = build(), []
    for part in model.confounder.modules():
        part.register_forward_hook(lambda *_: calls.append(1))
    images, tokens = inputs(model)
    without = model(images, tokens)
    assert without.confounder_logits is None and calls == []
    with_ = model(images, tokens, confounder=True)
    assert with_.confounder_logits is not None and calls
    assert torch.equal(without.logits, with_.logits)


def test_the_two_branches_have_the_same_shape_and_weights_of_their_own():
    model = build()
    causal, confounder = model.causal.state_dict(), model.confounder.state_dict()
    assert {k: v.shape for k, v in causal.items()} == {k: v.shape for k, v in confounder.items()}
    assert not {p.data_ptr() for p in model.causal.parameters()} & {p.data_ptr() for p in model.confounder.parameters()}


@torch.inference_mode()
def test_without_intervention_there_are_no_masks_and_no_confounder_branch():
    model = build(intervention=False)
    assert not any(name.startswith(("maskers", "confounder")) for name, _ in model.named_parameters())
    images, tokens = inputs(model)
    out = model(images, tokens)
    assert out.logits.shape == (2, 1, 64, 64) and out.confounder_logits is None and out.masks == ()
    fine, *stages = model.vision_encoder(images, fine=True)
    torch.testing.assert_close(out.logits, model.causal(model.text_encoder(tokens), stages, (64, 64), fine))
    with pytest.raises(ValueError, match="without causal intervention"):
        model(images, tokens, confounder=True)


def test_every_weight_gets_a_gradient_from_the_two_predictions():
    model = build().train()
    out = model(*inputs(model), confounder=True)
    (out.logits.sum() - out.confounder_logits.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_reversal_lets_the_confounder_decoder_descend_what_maskers_and_encoders_ascend():
    """Gradients of L_s under `minimax` (lambda 0.3) are those of L_s for D_s, and -0.3 times them everywhere before it."""
    model = build().double()
    given = inputs(model)
    given = (given[0].double(), given[1])
    grads, outputs = [], []
    for reversal in (None, 0.3):
        model.zero_grad()
        out = model(*given, confounder=True, reversal=reversal)
        outputs.append(out)
        out.confounder_logits.square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert torch.equal(outputs[0].confounder_logits, outputs[1].confounder_logits) and torch.equal(outputs[0].logits, outputs[1].logits)
    assert grads[0].keys() == grads[1].keys()
    seen = set()
    for name in grads[0]:
        part = name.split(".")[0]
        seen.add(part)
        factor = 1.0 if part == "confounder" else -0.3
        torch.testing.assert_close(grads[1][name], factor * grads[0][name], msg=name)
    assert seen == {"confounder", "maskers", "text_encoder", "vision_encoder"}


def test_a_conditioned_decoder_needs_features_at_stride_4(monkeypatch):
    def without_fine(*given):
        text, vision = build_encoders(*given)
        vision.fine_channels = 0
        return text, vision

    monkeypatch.setattr("causalclipseg.model.build_encoders", without_fine)
    with pytest.raises(ValueError, match='"mini" gives no features at stride 4.*set decoder=plain'):
        CausalCLIPSeg(make_tiny_config())
    CausalCLIPSeg(make_tiny_config(decoder="plain"))


def test_a_size_that_is_no_multiple_of_32_is_refused():
    model = build()
    with pytest.raises(ValueError, match="resize them to 128 x 128"):
        model(torch.rand(1, 3, 112, 112), model.tokenize(REPORTS[:1])[0])


def test_more_tokens_than_the_model_knows_are_refused():
    with pytest.raises(ValueError, match="25 tokens"):
        build()(torch.rand(1, 3, 64, 64), torch.zeros(1, 25, dtype=torch.long))


@torch.inference_mode()
def test_each_picture_is_predicted_by_itself():
    model = build()
    images, tokens = inputs(model)
    together, alone = model(images, tokens).logits, torch.cat([model(i[None], t[None]).logits for i, t in zip(images, tokens)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- save and load


@pytest.mark.parametrize("changes", [{}, {"intervention": False, "mask_channels": "channel", "context_length": 20}])
@torch.inference_mode()
def test_a_saved_model_gives_the_same_output_bit_for_bit(tmp_path, changes):
    model = build(**changes)
    model.save_pretrained(tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    again = CausalCLIPSeg.from_pretrained(tmp_path / "m")
    assert again.config == model.config and not again.training
    given = inputs(model)
    ask = model.config.intervention
    assert torch.equal(model(*given, confounder=ask).logits, again(*given, confounder=ask).logits)
    if ask:
        assert torch.equal(model(*given, confounder=True).confounder_logits, again(*given, confounder=True).confounder_logits)


@torch.inference_mode()
def test_half_precision_storage_rounds_the_weights_and_keeps_the_statistics(tmp_path):
    model = build()
    model.save_pretrained(tmp_path, dtype=torch.float16)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    parameters = dict(model.named_parameters())
    for key, value in model.state_dict().items():
        expected = value.half() if key in parameters else value
        assert stored[key].dtype == expected.dtype and torch.equal(stored[key], expected), key
    again = CausalCLIPSeg.from_pretrained(tmp_path)
    assert all(p.dtype == torch.float32 and torch.equal(p, parameters[name].half().float()) for name, p in again.named_parameters())
    given = inputs(model)
    torch.testing.assert_close(model(*given).logits, again(*given).logits, atol=0.1, rtol=0.1)
    again.save_pretrained(tmp_path / "twice", dtype=torch.float16)
    assert (tmp_path / "twice" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@torch.inference_mode()
def test_storage_in_8_bits_rounds_each_row_by_its_own_step(tmp_path):
    model = build()
    model.text_encoder.token_embedding.weight[7] = 0  # a row without a largest value
    model.save_pretrained(tmp_path, dtype=torch.int8)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    again = CausalCLIPSeg.from_pretrained(tmp_path).state_dict()
    parameters = {name for name, p in model.named_parameters() if p.ndim > 1}
    for key, value in model.state_dict().items():
        if key not in parameters:
            assert torch.equal(stored[key], value) and torch.equal(again[key], value), key
            continue
        assert stored[key].dtype == torch.int8 and again[key].dtype == torch.float32, key
        for row, found in zip(value[:20], again[key]):
            step = row.abs().max() / 127
            assert (row - found).abs().max() <= 0.501 * step and torch.isclose(row.abs().max(), found.abs().max(), rtol=1e-5), key
    assert stored.keys() == model.state_dict().keys() | {key + ".scale" for key in parameters}
    given = inputs(model)
    torch.testing.assert_close(model(*given).logits, CausalCLIPSeg.from_pretrained(tmp_path)(*given).logits, atol=0.2, rtol=0.2)


@torch.inference_mode()
def test_storage_in_4_bits_packs_large_weights_and_leaves_small_ones_in_8(monkeypatch):
    monkeypatch.setattr("causalclipseg.model.LARGE", 200)
    generator = torch.Generator().manual_seed(3)
    state = {name: torch.randn(shape, generator=generator) for name, shape in {"large": (7, 5, 3, 3), "even": (20, 10), "small": (9, 11), "vector": (300,)}.items()}
    state["large"][4] = 0  # a row without a largest value
    stored = quantized(state, set(state), bits=4)
    assert {key: tuple(value.shape) for key, value in stored.items() if value.dtype == torch.uint8} == {"large": (7, 23), "even": (20, 5)}, "odd rows end in half a byte"
    assert stored["small"].dtype == torch.int8 and torch.equal(stored["vector"], state["vector"])
    again = dequantized(stored)
    assert again.keys() == state.keys()
    for name, most in (("large", 7), ("even", 7), ("small", 127)):
        for row, found in zip(state[name], again[name]):
            assert (row - found).abs().max() <= 0.501 * row.abs().max() / most, name
    less = without_rows(stored, "even", torch.arange(20) % 3 == 0)
    assert less["even"].shape == (7, 5) and less["even" + ".rows"].tolist() == [20, *range(0, 20, 3)]
    expected = torch.where((torch.arange(20) % 3 == 0)[:, None], again["even"], 0.0)
    torch.testing.assert_close(dequantized(less)["even"], expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="not in 5"):
        quantized(state, set(state), bits=5)


def test_saving_over_a_model_replaces_it_and_leaves_nothing_beside_it(tmp_path):
    build(seed=1).save_pretrained(tmp_path)
    model = build(seed=2)
    model.save_pretrained(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    loaded = CausalCLIPSeg.from_pretrained(str(tmp_path)).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def refused(directory, said):
    with pytest.raises(ValueError, match=said) as caught:
        CausalCLIPSeg.from_pretrained(directory)
    assert "\n" not in str(caught.value)


def copy_of(tiny_model_dir, tmp_path, *, config=None, weights=None):
    """The tiny model's folder with another config or other weights."""
    settings = json.loads((tiny_model_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **(config or {})}))
    content = (tiny_model_dir / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content if weights is None else weights(content))
    return tmp_path


def test_a_folder_without_weights_is_refused(tiny_model_dir, tmp_path):
    (copy_of(tiny_model_dir, tmp_path) / "model.safetensors").unlink()
    refused(tmp_path, "holds no model.safetensors")


def test_a_folder_without_a_config_is_refused(tiny_model_dir, tmp_path):
    (copy_of(tiny_model_dir, tmp_path) / "config.json").unlink()
    refused(tmp_path, "config.json does not exist")


def test_an_unknown_key_of_the_config_is_named(tiny_model_dir, tmp_path):
    refused(copy_of(tiny_model_dir, tmp_path, config={"flux": 3}), '"flux"')


def test_weights_of_another_shape_are_refused(tiny_model_dir, tmp_path):
    refused(copy_of(tiny_model_dir, tmp_path, config={"fusion_width": 20}), "does not fit its config.json")


def test_weights_that_are_missing_are_refused(tiny_model_dir, tmp_path):
    refused(copy_of(tiny_model_dir, tmp_path, config={"upsampling_steps": 2}), "does not fit its config.json.*causal.decoder.refine.2")


def test_a_truncated_weights_file_is_refused(tiny_model_dir, tmp_path):
    refused(copy_of(tiny_model_dir, tmp_path, weights=lambda content: content[:-100]), "does not fit")


@pytest.mark.parametrize("place", ["/no/such/folder", "./nothing", "nothing", "a/b/c"])
def test_a_place_that_is_neither_folder_nor_hub_id_is_refused(place):
    refused(place, "not a folder with a model, nor a hub id")


def test_a_hub_id_without_a_network_gives_one_clear_sentence(tmp_path):
    with pytest.raises(ValueError, match="could not be fetched from the hub"):
        CausalCLIPSeg.from_pretrained("nobody/nothing", cache_dir=tmp_path)


# ---------------------------------------------------------------- size and cost


def test_the_mini_model_fits_its_twelve_megabytes(tmp_path):
    CausalCLIPSeg(preset("mini")[0]).save_pretrained(tmp_path, dtype=torch.int8)
    assert (tmp_path / "model.safetensors").stat().st_size <= 12_000_000


def test_the_paper_preset_builds_without_a_network_and_costs_at_most_60_gflops(tmp_path):
    """In a process of its own with an empty cache, where every attempt to connect fails."""
    script = """
import socket
def refuse(*args, **kwargs): raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from causalclipseg import CausalCLIPSeg, preset
model = CausalCLIPSeg(preset("paper")[0]).eval()
tokens, cut = model.tokenize(["Unilateral pulmonary infection, one infected area, lower left lung."])
assert tokens.shape == (1, 20) and cut == [False]
with torch.inference_mode(), FlopCounterMode(display=False) as counter:
    out = model(torch.rand(1, 3, 224, 224), tokens)
assert out.logits.shape == (1, 1, 224, 224) and out.confounder_logits is None
print(counter.get_total_flops())
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    flops = int(done.stdout.split()[-1])
    assert 15e9 < flops <= 60e9


@torch.inference_mode()
def test_a_conditioned_decoder_starts_as_the_plain_one():
    torch.manual_seed(0)
    plain = CausalCLIPSeg(make_tiny_config(decoder="plain")).eval()
    conditioned = CausalCLIPSeg(make_tiny_config(decoder="conditioned")).eval()
    conditioned.load_state_dict({**conditioned.state_dict(), **plain.state_dict()})
    images, tokens = inputs(plain)
    torch.testing.assert_close(conditioned(images, tokens).logits, plain(images, tokens).logits)


@torch.inference_mode()
def test_a_conditioned_decoder_is_not_affine_in_tau_and_a_plain_one_is():
    for decoder, affine in (("plain", True), ("conditioned", False)):
        model = build(decoder=decoder).double()
        fine, *stages = model.vision_encoder(inputs(model)[0].double(), fine=True)
        one, two = torch.randn(2, 1, model.text_encoder.dim, generator=torch.Generator().manual_seed(1), dtype=torch.double)
        answer = lambda tau: model.causal(tau, [x[:1] for x in stages], (64, 64), fine[:1])
        bend = (answer((one + two) / 2) - (answer(one) + answer(two)) / 2).abs().max() / (answer(one) - answer(two)).abs().max()
        assert (bend < 1e-9) == affine, bend


@torch.inference_mode()
def test_standardized_pictures_hide_a_change_of_brightness_and_contrast():
    def change(standardize):
        encoder = build(standardize=standardize).vision_encoder
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
        assert all(torch.isfinite(x).all() for x in encoder(torch.full_like(images, 0.5)))
        plain, edited = encoder(images)[0], encoder(0.2 + 0.6 * images)[0]
        return float((plain - edited).abs().mean() / plain.std())

    assert change(True) < 0.2 * change(False)


@torch.inference_mode()
def test_asking_for_the_confounder_costs_more_and_not_asking_costs_nothing():
    model = build()
    given = inputs(model)
    flops = []
    for ask in (False, True):
        with FlopCounterMode(display=False) as counter:
            model(*given, confounder=ask)
        flops.append(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter:
        del model.confounder
        model(*given)
    assert counter.get_total_flops() == flops[0] < flops[1]


def test_the_default_model_is_the_mini_preset():
    assert ModelConfig() == preset("mini")[0]
