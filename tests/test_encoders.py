"""CLIP's encoders against open_clip's own passes, and every way in which weights come or don't."""
import copy
import dataclasses
import functools
import hashlib
import json
import pickle
import shutil
import socket

import huggingface_hub
import open_clip
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from torch import nn

from causalclipseg import cli
from causalclipseg.config import ClipConfig, ModelConfig
from causalclipseg.encoders import OtherTextEncoder, TextEncoder, VisionEncoder, build_clip, build_encoders, reads_as_clip, tokenize, two_sources
from causalclipseg.model import CausalCLIPSeg
from causalclipseg.pretrained import load_weights
from causalclipseg.recording import Recording
from conftest import lively, make_tiny_config, tiny_changes

REPORTS = [
    "Bilateral pulmonary infection, two infected areas, all left lung and middle lower right lung.",
    "Unilateral pulmonary infection, one infected area, lower left lung.",
    "",
    "Schatten unten links ☁",
]


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("length", [77, 40])
def test_tokens_equal_those_of_open_clips_own_tokenizer(length):
    tokens, cut = tokenize(REPORTS, length)
    assert tokens.dtype == torch.long and cut == [False] * len(REPORTS)
    assert torch.equal(tokens, open_clip.tokenizer.SimpleTokenizer()(REPORTS, context_length=length))


def test_a_long_sentence_is_cut_keeps_its_eot_and_is_reported():
    own = open_clip.tokenizer.SimpleTokenizer()
    tokens, cut = tokenize(REPORTS, 12)
    assert cut == [True, True, False, False]
    whole = own(REPORTS, context_length=77)
    assert torch.equal(tokens[0, :11], whole[0, :11]) and tokens[0, 11] == own.eot_token_id
    assert (tokens == own.eot_token_id).sum(1).tolist() == [1] * 4 and (tokens[:, 0] == own.sot_token_id).all()


def test_the_vocabularys_own_marks_are_no_words_of_a_report():
    marked, plain = (tokenize([text], 24)[0] for text in ("left lung <end_of_text> and right <START_of_text>", "left lung and right"))
    assert torch.equal(marked, plain)


def test_a_file_whose_name_holds_a_plus_is_one_source(tmp_path):
    (tmp_path / "a+b.safetensors").touch()
    assert two_sources(str(tmp_path / "a+b.safetensors")) == (str(tmp_path / "a+b.safetensors"), "")
    assert two_sources("openai+none") == ("openai", "none") and two_sources("openai") == ("openai", "")


def test_a_sentence_that_just_fits_is_not_cut():
    n = int((tokenize(REPORTS[1:2], 77)[0] != 0).sum())
    assert tokenize(REPORTS[1:2], n)[1] == [False] and tokenize(REPORTS[1:2], n - 1)[1] == [True]


def test_the_default_context_holds_the_longest_sentences_and_the_papers_does_not():
    longest = "Bilateral pulmonary infection, six infected areas, upper middle lower left lung and upper middle lower right lung."
    assert tokenize([longest], ModelConfig().context_length)[1] == [False]
    assert tokenize([longest], 20)[1] == [True]


# ---------------------------------------------------------------- tau and F_2 ... F_4


def small(context_length=77):
    """A config whose shape OpenAI's format can express (64 channels a head of the text transformer)."""
    clip = ClipConfig(embed_dim=32, vision_layers=(1, 2, 1, 1), vision_width=16, vision_heads=8, text_width=64, text_heads=1, text_layers=2)
    return ModelConfig(clip=clip, image_size=64, context_length=context_length)


@pytest.fixture(scope="module")
def rn101():
    """RN101-quickgelu, the paper's encoder, with random weights (119,688,033 of them); read, don't change."""
    torch.manual_seed(0)
    clip = build_clip(ModelConfig(encoder="RN101-quickgelu"))
    assert sum(p.numel() for p in clip.parameters()) == 119_688_033
    return lively(clip).eval()


@pytest.fixture(scope="module")
def small_clip():
    torch.manual_seed(1)
    return lively(build_clip(small())).eval()


@pytest.fixture(scope="module", params=["small", "RN101-quickgelu"])
def clip(request, small_clip):
    return small_clip if request.param == "small" else request.getfixturevalue("rn101")


@torch.inference_mode()
def test_tau_equals_open_clips_own_text_encoder(clip):
    tokens, _ = tokenize(REPORTS, clip.context_length)
    torch.testing.assert_close(TextEncoder(clip)(tokens), clip.encode_text(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [20, 24, 33])
@torch.inference_mode()
def test_tau_of_few_tokens_equals_tau_of_77_with_padding(clip, length):
    tokens, cut = tokenize(REPORTS[1:], length)
    assert not any(cut)
    torch.testing.assert_close(TextEncoder(clip)(tokens), clip.encode_text(tokenize(REPORTS[1:], 77)[0]), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_what_follows_the_eot_token_cannot_change_tau(small_clip):
    tokens, _ = tokenize(REPORTS[1:2], 40)
    other = tokens.clone()
    other[0, int(tokens.argmax()) + 1 :] = 1234
    encoder = TextEncoder(small_clip)
    torch.testing.assert_close(encoder(tokens), encoder(other))
    other[0, 3] += 1
    assert not torch.allclose(encoder(tokens), encoder(other))


def test_more_tokens_than_positions_are_refused(small_clip):
    with pytest.raises(ValueError, match="78 tokens are more than this encoder's 77"):
        TextEncoder(small_clip)(torch.zeros(1, 78, dtype=torch.long))


@torch.inference_mode()
def test_features_equal_those_of_open_clips_own_forward_pass(clip):
    size = clip.visual.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    images = torch.rand(1, 3, *size)
    seen = {}
    hooks = [
        getattr(clip.visual, f"layer{i}").register_forward_hook(lambda _, __, out, i=i: seen.__setitem__(i, out.clone()))
        for i in (2, 3, 4)
    ]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    clip.encode_image((images - mean) / std)
    for hook in hooks:
        hook.remove()
    own = copy.copy(clip)  # the encoder drops the attention pool, so it gets a visual tower of its own
    own._modules = {**clip._modules, "visual": copy.deepcopy(clip.visual)}
    encoder = VisionEncoder(own).eval()
    features = encoder(images)
    assert len(features) == 3 and encoder.channels == tuple(f.shape[1] for f in features)
    for stride, i, feature in zip((8, 16, 32), (2, 3, 4), features):
        assert feature.shape[-2:] == (size[0] // stride, size[1] // stride)
        torch.testing.assert_close(feature, seen[i])


@torch.inference_mode()
def test_pictures_need_not_be_square():
    encoder = VisionEncoder(build_clip(small())).eval()
    assert [tuple(f.shape) for f in encoder(torch.rand(2, 3, 64, 96))] == [(2, 128, 8, 12), (2, 256, 4, 6), (2, 512, 2, 3)]


@pytest.mark.parametrize("size, named", [((112, 112), "128 x 128"), ((64, 65), "64 x 96"), ((1, 224), "32 x 224")])
def test_a_size_that_is_no_multiple_of_32_is_refused_with_the_size_to_use(size, named):
    with pytest.raises(ValueError, match=f"not {size[0]} x {size[1]}; resize them to {named}"):
        VisionEncoder(build_clip(small()))(torch.rand(1, 3, *size))


# ---------------------------------------------------------------- models by name


@pytest.mark.parametrize(
    "name, channels, text, length",
    [("RN50", (512, 1024, 2048), 1024, 24), ("convnext_tiny", (192, 384, 768), 1024, 24), ("MobileCLIP2-S0", (128, 256, 512), 512, 77)],  # the last: every token sees all
)
@torch.inference_mode()
def test_any_image_tower_that_gives_a_pyramid_works_by_name(name, channels, text, length):
    model = CausalCLIPSeg(ModelConfig(encoder=name, context_length=length)).eval()
    assert (model.vision_encoder.channels, model.text_encoder.dim) == (channels, text)
    out = model(torch.rand(1, 3, 32, 64), model.tokenize(REPORTS[1:2])[0])
    assert out.logits.shape == (1, 1, 32, 64) and out.logits.isfinite().all()


def test_an_image_tower_without_a_pyramid_is_refused_with_models_to_try():
    with pytest.raises(ValueError, match="no features at strides 8, 16 and 32; try RN50, RN101-quickgelu or convnext_base"):
        VisionEncoder(build_clip(ModelConfig(encoder="PE-Core-T-16-384")))


@torch.inference_mode()
def test_an_image_tower_of_one_picture_size_says_so():
    encoder = VisionEncoder(build_clip(ModelConfig(encoder="swin_base_patch4_window7_224"))).eval()
    assert [f.shape[-1] for f in encoder(torch.rand(1, 3, 224, 224))] == [28, 14, 7]
    with pytest.raises(ValueError, match="224 pixels alone, not 64 x 64: set image_size=224 and sizes"):
        encoder(torch.rand(1, 3, 64, 64))


# ---------------------------------------------------------------- text towers that aren't CLIP's


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder as open_clip's on the hub: a small CLIP whose sentences are read by a BERT of transformers, vocabulary included."""
    folder = tmp_path_factory.mktemp("bert")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] infection of the left right lung lower upper , .".split()
    reader = tokenizers.BertWordPieceTokenizer({word: i for i, word in enumerate(words)}, lowercase=True)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=reader._tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    ).save_pretrained(folder)  # fmt: skip
    transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40,
    ).save_pretrained(folder)  # fmt: skip
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}}))
    return f"local-dir:{folder}"


def test_a_bert_of_transformers_reads_the_sentences_and_comes_back_from_its_folder(bert, tmp_path):
    torch.manual_seed(0)
    clip = build_clip(ModelConfig(encoder=bert))
    safetensors.torch.save_file(clip.state_dict(), tmp_path / "bert.safetensors")
    config = dataclasses.replace(make_tiny_config(), text_encoder=bert, context_length=10)
    model = CausalCLIPSeg(config, weights=f"none+{tmp_path}/bert.safetensors").eval()
    tokens, cut = model.tokenize(["Infection of the LEFT lung.", "infection of the left lung.", "", "lung " * 9])
    left = [2, 5, 6, 7, 8, 10, 14, 3, 0, 0]
    assert tokens.tolist() == [left, left, [2, 3, *[0] * 8], [2, *[10] * 8, 3]] and cut == [False, False, False, True]
    with torch.inference_mode():
        tau = model.text_encoder(tokens)
        torch.testing.assert_close(tau, clip.eval().encode_text(tokens))
        assert tau.shape == (4, model.text_encoder.dim) == (4, 12)
        longer = tokenize(["infection of the left lung."], 30, bert)[0]
        torch.testing.assert_close(model.text_encoder(longer), tau[:1], msg="padding says nothing")
        output = model(torch.rand(4, 3, 64, 64), tokens)
    with pytest.raises(ValueError, match="41 tokens are more than this encoder's 40"):
        model.text_encoder(torch.zeros(1, 41, dtype=torch.long))
    with pytest.raises(ValueError, match="graphs=true records CLIP's text tower alone"):
        Recording(model)
    model.save_pretrained(tmp_path / "run")
    again = CausalCLIPSeg.from_pretrained(tmp_path / "run")
    with torch.inference_mode():
        torch.testing.assert_close(again.text_encoder(tokens), tau)
    assert output.logits.shape == (4, 1, 64, 64)


def test_a_model_on_the_hub_is_built_from_its_settings_alone(bert, tmp_path, monkeypatch):
    home = tmp_path / "models--org--tiny"
    (home / "snapshots" / "abc").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    shutil.copy(bert.removeprefix("local-dir:") + "/open_clip_config.json", home / "snapshots" / "abc")
    here = functools.partial(huggingface_hub.snapshot_download, cache_dir=tmp_path, local_files_only=True)
    monkeypatch.setattr("causalclipseg.encoders.snapshot_download", here)
    clip = build_clip(ModelConfig(encoder="hf-hub:org/tiny"))
    assert clip.state_dict().keys() == build_clip(ModelConfig(encoder=bert)).state_dict().keys()


def test_another_tower_has_no_dropout_reads_each_sentence_once_and_learns(bert):
    clip = build_clip(ModelConfig(encoder=bert))
    assert clip.text.transformer.config.hidden_dropout_prob > 0
    encoder = OtherTextEncoder(clip, 10).train()
    tokens = tokenize(["left", "right", "left"], 10, bert)[0]
    rows = []
    encoder.tower.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    tau = encoder(tokens)
    assert rows == [2] and torch.equal(tau[0], tau[2]) and torch.equal(encoder(tokens), tau) and not torch.equal(tau[0], tau[1])
    tau.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_open_clips_other_text_towers_give_their_own_embedding():
    torch.manual_seed(0)
    coca = build_clip(ModelConfig(encoder="coca_ViT-B-32")).eval()  # reads CLIP's tokens with a CLS token of its own behind them
    with pytest.raises(ValueError, match="OtherTextEncoder takes it"):
        TextEncoder(coca)
    tokens = tokenize(REPORTS, 76, "coca_ViT-B-32")[0]
    assert torch.equal(tokens, tokenize(REPORTS, 76)[0])
    with pytest.raises(ValueError, match="sentences of 76 tokens, as it was trained: set context_length=76"):
        OtherTextEncoder(coca, 24)  # its CLS would stand elsewhere
    with torch.inference_mode():
        torch.testing.assert_close(OtherTextEncoder(coca, 76).eval()(tokens), coca.encode_text(tokens, normalize=False))


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])  # open_clip's older class holds the text tower's parts itself
@pytest.mark.parametrize("text", [dict(pool_type="last", no_causal_mask=True), dict(pool_type="eos", eos_id=98), dict(no_causal_mask=True)])
def test_a_tower_in_which_padding_has_a_say_keeps_its_length(kind, text):
    torch.manual_seed(0)
    clip = kind(
        embed_dim=12, vision_cfg=dict(layers=[1, 1, 1, 1], width=16, head_width=32, image_size=64),
        text_cfg=dict(context_length=16, vocab_size=99, width=16, heads=2, layers=1, **text),
    ).eval()  # fmt: skip
    assert not reads_as_clip(clip)
    with pytest.raises(ValueError, match="sentences of 16 tokens, as it was trained: set context_length=16"):
        OtherTextEncoder(clip, 24)
    tokens = torch.randint(0, 98, (3, 16))
    tokens[:, 9] = 98
    encoder = OtherTextEncoder(clip, 16).eval()
    with torch.inference_mode():
        tau = encoder(tokens)
        torch.testing.assert_close(tau, clip.encode_text(tokens))
    assert tau.shape == (3, encoder.dim) and not [name for name in encoder.state_dict() if "visual" in name]


def test_a_sentence_that_loses_one_token_of_another_vocabulary_is_reported(bert):
    assert tokenize(["left " * 8, "left " * 9], 10, bert)[1] == [False, True]


def test_weights_of_two_clips_are_both_named(bert, small_clip, tmp_path):
    safetensors.torch.save_file({k: v.contiguous() for k, v in small_clip.state_dict().items()}, tmp_path / "w.safetensors")
    config = dataclasses.replace(small(), text_encoder=bert)
    with pytest.raises(ValueError, match=r"says nothing of the text_encoder; add its weights, .*w.safetensors\+…"):
        build_encoders(config, f"{tmp_path}/w.safetensors")
    assert isinstance(build_encoders(config, f"{tmp_path}/w.safetensors+none")[0], OtherTextEncoder)


def test_weights_lie_in_a_folder_of_open_clip(bert, tmp_path):
    torch.manual_seed(1)
    folder = shutil.copytree(bert.removeprefix("local-dir:"), tmp_path / "whole")
    clip = build_clip(ModelConfig(encoder=f"local-dir:{folder}"))
    torch.save({**clip.state_dict(), "text.transformer.embeddings.position_ids": torch.arange(40)[None]}, folder / "open_clip_pytorch_model.bin")
    again = build_clip(ModelConfig(encoder=f"local-dir:{folder}"))
    load_weights(again, f"local-dir:{folder}", encoder=f"local-dir:{folder}")
    assert_same(again, clip.state_dict())


@pytest.mark.parametrize("name", ["local-dir:/no/such/folder", "local-dir:{tmp}", "hf-hub:nobody/nothing"])
def test_a_tower_whose_settings_are_not_there_is_refused_in_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.setattr("causalclipseg.encoders.snapshot_download", functools.partial(huggingface_hub.snapshot_download, local_files_only=True))
    for build in [lambda name: build_clip(ModelConfig(encoder=name)), lambda name: tokenize([""], 10, name)][: 1 if name.startswith("hf-hub") else 2]:
        with pytest.raises(ValueError, match="could not be built .*; its settings and vocabulary come from the hub or from its folder") as caught:
            build(name.format(tmp=tmp_path))
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- F_2 ... F_4 of other towers


@torch.inference_mode()
def test_features_of_a_timm_tower_equal_its_own_and_lie_at_strides_8_16_32():
    torch.manual_seed(0)
    clip = build_clip(ModelConfig(encoder="convnext_tiny")).eval()
    images = torch.rand(2, 3, 64, 96)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    last = clip.visual.trunk.forward_features((images - mean) / std)
    encoder = VisionEncoder(clip).eval()
    stages = encoder(images)
    assert [tuple(f.shape[1:]) for f in stages] == [(192, 8, 12), (384, 4, 6), (768, 2, 3)]
    torch.testing.assert_close(stages[-1], last)
    names = [name for name, _ in encoder.named_parameters()]
    assert not [name for name in names if "fc" in name.split(".") or "proj" in name.split(".")], "nothing that pools is kept"


def test_the_sentences_may_be_read_by_another_clip_with_weights_of_its_own(small_clip, tmp_path):
    safetensors.torch.save_file({k: v.contiguous() for k, v in small_clip.state_dict().items()}, tmp_path / "pictures.safetensors")
    other = build_clip(small())
    safetensors.torch.save_file({k: v.contiguous() for k, v in other.state_dict().items()}, tmp_path / "sentences.safetensors")
    config = dataclasses.replace(small(), text_encoder="mini")
    text, vision = build_encoders(config, f"{tmp_path}/pictures.safetensors+{tmp_path}/sentences.safetensors")
    assert torch.equal(text.text_projection, other.text_projection)
    assert torch.equal(vision.net.layer4[0].conv1.weight, small_clip.visual.layer4[0].conv1.weight)
    with pytest.raises(ValueError, match="needs a text_encoder"):
        build_encoders(small(), "one+two")


def test_each_different_sentence_of_a_batch_is_read_once_in_training_with_the_same_tau_and_gradients(small_clip):
    reports = [REPORTS[i] for i in (1, 0, 1, 1, 2, 0)]
    tokens = tokenize(reports, 77)[0]
    found = []
    for training in (True, False):
        encoder = TextEncoder(copy.deepcopy(small_clip)).train(training)
        rows = []
        encoder.transformer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        tau = encoder(tokens)
        (tau * torch.arange(1.0, 7)[:, None]).sum().backward()
        assert rows == [3 if training else 6]
        found.append((tau, encoder.token_embedding.weight.grad, encoder.text_projection.grad))
    for once, each in zip(*found):
        torch.testing.assert_close(once, each, atol=1e-4, rtol=1e-4)


def test_a_name_that_open_clip_has_not_is_refused():
    with pytest.raises(ValueError, match='no model "RN9000"'):
        build_clip(ModelConfig(encoder="RN9000"))


# ---------------------------------------------------------------- weights


def archive(state, path, half=True):
    """A TorchScript archive that holds `state` as OpenAI's did: half precision, and three numbers beside the weights."""
    root = nn.Module()
    for key, value in state.items():
        *parents, name = key.split(".")
        place = root
        for parent in parents:
            if parent not in place._modules:
                place.add_module(parent, nn.Module())
            place = place._modules[parent]
        value = value.half() if half and value.is_floating_point() else value
        place.register_buffer(name, value.clone())
    for name, value in (("input_resolution", 64), ("context_length", 77), ("vocab_size", 49408)):
        root.register_buffer(name, torch.tensor(value))
    torch.jit.save(torch.jit.script(root), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def halved(state):
    return {key: value.half().float() if value.is_floating_point() else value for key, value in state.items()}


def fresh(seed=7, quick_gelu=False):
    """A small CLIP with other random weights; OpenAI's own models compute with QuickGELU."""
    torch.manual_seed(seed)
    clip = build_clip(small())
    if quick_gelu:
        for block in clip.transformer.resblocks:
            block.mlp.gelu = open_clip.transformer.QuickGELU()
    return clip


def assert_same(clip, state):
    own = clip.state_dict()
    assert own.keys() == state.keys()
    for key in own:
        assert own[key].dtype == state[key].dtype and torch.equal(own[key], state[key]), key


@pytest.fixture(scope="module")
def small_archive(small_clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "small.pt"
    return path, archive(small_clip.state_dict(), path)


def test_no_weights_leaves_the_random_ones():
    clip = fresh()
    before = copy.deepcopy(clip.state_dict())
    load_weights(clip, "none", encoder="mini")
    assert_same(clip, before)


@pytest.mark.parametrize("flags", [{}, {"torchscript": True}, {"sha256": True}])
def test_a_torchscript_archive_is_refused_without_both_flag_and_digest(small_archive, flags):
    path, digest = small_archive
    clip = fresh()
    before = copy.deepcopy(clip.state_dict())
    flags = {key: digest if key == "sha256" else value for key, value in flags.items()}
    with pytest.raises(ValueError, match="TorchScript archive, which holds code.*torchscript=True.*SHA-256"):
        load_weights(clip, str(path), encoder="mini", **flags)
    assert_same(clip, before)


def test_a_torchscript_archive_with_another_digest_is_refused(small_archive):
    path, digest = small_archive
    with pytest.raises(ValueError, match=f"has the SHA-256 digest {digest}, not {'0' * 64}"):
        load_weights(fresh(), str(path), encoder="mini", torchscript=True, sha256="0" * 64)


@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_a_torchscript_archive_is_loaded_bit_for_bit(small_archive, small_clip, case):
    path, digest = small_archive
    clip = fresh(quick_gelu=True)
    load_weights(clip, str(path), encoder="mini", torchscript=True, sha256=case(digest))
    assert_same(clip, halved(small_clip.state_dict()))


def test_a_training_takes_an_archive_only_with_both_flag_and_digest(small_archive, small_clip, phantom_folder, tmp_path, capsys):
    path, digest = small_archive
    vision, text = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "head_width": 64}, {"context_length": 77, "width": 64, "heads": 1, "layers": 2}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}}))
    asked = [*tiny_changes(), f"encoder=local-dir:{tmp_path}", f"weights={path}", "epochs=1", "batch_size=4", "sizes=[]", "samples_every=0"]
    asked += ['freeze=["text", "stem", "stage1", "stage2", "stage3", "stage4"]']  # what is read stays as it is

    def run(out, *more, digest=""):
        settings = [part for setting in (*asked, f"weights_sha256={digest}") for part in ("--set", setting)]
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", "--data", str(phantom_folder), "--limit", "4", "--out", str(tmp_path / out), *settings, *more])
        return ended.value.code or 0, capsys.readouterr().err

    for case in (run("flag", "--torchscript"), run("digest", digest=digest)):
        assert case[0] == 2 and "TorchScript archive, which holds code" in case[1]
    status, said = run("other", "--torchscript", digest="0" * 64)
    assert status == 2 and f"has the SHA-256 digest {digest}" in said
    status, said = run("both", "--torchscript", digest=digest)
    assert status == 0, said
    kept, expected = CausalCLIPSeg.from_pretrained(tmp_path / "both").state_dict(), halved(small_clip.state_dict())
    for name in ("text_projection", "transformer.resblocks.1.mlp.c_fc.weight"):
        assert torch.equal(kept[f"text_encoder.{name}"], expected[name])
    assert torch.equal(kept["vision_encoder.net.layer2.1.conv2.weight"], expected["visual.layer2.1.conv2.weight"])


@torch.inference_mode()
def test_an_archive_gives_the_tau_that_open_clip_itself_reads_from_it(small_archive):
    path, digest = small_archive
    clip = fresh(quick_gelu=True)
    load_weights(clip, str(path), encoder="mini", torchscript=True, sha256=digest)
    tokens, _ = tokenize(REPORTS, 77)
    theirs = open_clip.load_openai_model(str(path), precision="fp32", device="cpu")
    torch.testing.assert_close(TextEncoder(clip)(tokens), theirs.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_openai_weights_are_refused_by_a_model_with_another_activation(small_archive):
    path, digest = small_archive
    with pytest.raises(ValueError, match="QuickGELU"):
        load_weights(fresh(quick_gelu=False), str(path), encoder="mini", torchscript=True, sha256=digest)


def test_the_tag_of_openai_is_refused_by_a_gelu_model_before_anything_is_downloaded():
    with pytest.raises(ValueError, match='encoder="RN50-quickgelu"'):
        load_weights(fresh(quick_gelu=False), "openai", encoder="RN50")


def test_an_openai_format_archive_of_rn101_is_loaded_bit_for_bit(rn101, tmp_path):
    path = tmp_path / "RN101.pt"
    digest = archive(rn101.state_dict(), path)
    config = ModelConfig(encoder="RN101-quickgelu", context_length=20)
    with pytest.raises(ValueError, match="TorchScript archive"):
        load_weights(rn101, str(path), encoder=config.encoder)
    model = CausalCLIPSeg(config, weights=str(path), torchscript=True, sha256=digest)
    expected = halved(rn101.state_dict())
    for prefix, encoder in (("", model.text_encoder), ("visual.", model.vision_encoder.net)):
        state = encoder.state_dict()
        assert state and all(value.dtype == expected[prefix + key].dtype and torch.equal(value, expected[prefix + key]) for key, value in state.items())
    path.unlink()  # a quarter of a gigabyte


@pytest.mark.parametrize("kind", ["plain", "nested", "parallel", "openai", "safetensors"])
def test_a_state_dict_of_any_usual_form_is_loaded_bit_for_bit(small_clip, tmp_path, kind):
    state = small_clip.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    expected = state
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "openai":
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()} | {"input_resolution": torch.tensor(64), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}, path)
        expected = halved(state)
    elif kind == "parallel":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        torch.save(state if kind == "plain" else {"state_dict": state}, path)
    clip = fresh()
    load_weights(clip, str(path), encoder="mini", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert_same(clip, expected)


def test_a_model_starts_from_the_weights_it_was_given(small_clip, tmp_path):
    torch.save(small_clip.state_dict(), tmp_path / "w.pt")
    model = CausalCLIPSeg(small(), weights=str(tmp_path / "w.pt")).eval()
    tokens, _ = model.tokenize(REPORTS)
    with torch.inference_mode():
        torch.testing.assert_close(model.text_encoder(tokens), small_clip.encode_text(tokens), atol=1e-5, rtol=1e-5)


def damaged(state, kind):
    state = dict(state)
    if kind == "missing":
        del state["visual.layer3.0.conv2.weight"]
    else:
        state["visual.layer3.0.conv2.weight"] = state["visual.layer3.0.conv2.weight"][:-1].clone()
    return state


@pytest.mark.parametrize("kind, said", [("missing", "1 weights are missing, 0 have another shape"), ("shape", "0 weights are missing, 1 have another shape")])
def test_weights_that_do_not_fit_are_refused_by_name_and_nothing_is_changed(small_clip, tmp_path, kind, said):
    torch.save(damaged(small_clip.state_dict(), kind), tmp_path / "w.pt")
    clip = fresh()
    before = copy.deepcopy(clip.state_dict())
    with pytest.raises(ValueError, match=f"{said}.*visual.layer3.0.conv2.weight"):
        load_weights(clip, str(tmp_path / "w.pt"), encoder="mini")
    assert_same(clip, before)


class Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a weights file was run')",))


@pytest.mark.parametrize(
    "name, write, said",
    [
        ("code.pt", lambda path: torch.save({"state_dict": Code()}, path), "cannot be read as weights"),
        ("code.pkl", lambda path: path.write_bytes(pickle.dumps(Code(), 2)), "cannot be read as weights"),
        ("list.pt", lambda path: torch.save([torch.zeros(2)], path), "holds no state dict"),
        ("text.pt", lambda path: path.write_text("weights, honestly"), "cannot be read as weights"),
        ("empty.pt", lambda path: path.write_bytes(b""), "cannot be read as weights"),
        ("text.safetensors", lambda path: path.write_text("weights, honestly"), "cannot be read as weights"),
    ],
)
def test_a_file_that_holds_code_or_no_weights_is_refused(tmp_path, name, write, said):
    path = tmp_path / name
    write(path)
    with pytest.raises(ValueError, match=said) as caught:
        load_weights(fresh(), str(path), encoder="mini")
    assert "\n" not in str(caught.value)


def test_weights_of_a_deeper_text_encoder_are_refused(tmp_path):
    deep = dataclasses.replace(make_tiny_config(), clip=dataclasses.replace(make_tiny_config().clip, text_layers=2))
    torch.save(build_clip(deep).state_dict(), tmp_path / "deep.pt")
    with pytest.raises(ValueError, match="0 weights are missing, 0 have another shape, .* are unknown .for example .*resblocks.1"):
        load_weights(build_clip(make_tiny_config()), str(tmp_path / "deep.pt"), encoder="mini")


@pytest.mark.parametrize("encoder, source", [("RN50-quickgelu", "openai"), ("RN101-quickgelu", "openai"), ("RN50", "hf-hub-org/no-such-clip")])
def test_weights_that_cannot_be_fetched_give_one_clear_sentence(monkeypatch, tmp_path, encoder, source):
    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    clip = fresh(quick_gelu=encoder.endswith("quickgelu"))
    before = copy.deepcopy(clip.state_dict())
    with pytest.raises(ValueError, match="could not be downloaded .*; connect to the internet, or give a local file") as caught:
        load_weights(clip, source, encoder=encoder)
    assert "\n" not in str(caught.value)
    assert_same(clip, before)


def test_weights_of_the_hub_for_another_activation_are_refused(monkeypatch):
    monkeypatch.setattr("causalclipseg.pretrained._download", lambda name: fresh(quick_gelu=True))  # the download alone is made up
    with pytest.raises(ValueError, match="made for QuickGELU, and mini has GELU"):
        load_weights(fresh(), "hf-hub:org/name", encoder="mini")


@pytest.mark.parametrize("source", ["openia", "/no/such/file.pt", "./w.pt", "openai"])
def test_a_source_that_is_nothing_known_is_refused_and_the_tags_are_named(source):
    with pytest.raises(ValueError, match=r"neither a file nor a hub id nor a tag .*\(tags: none\)"):
        load_weights(fresh(), source, encoder="mini")
    if source != "openai":
        with pytest.raises(ValueError, match=r"\(tags: .*openai"):
            load_weights(fresh(), source, encoder="RN50")
