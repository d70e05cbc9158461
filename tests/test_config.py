"""Settings: presets, JSON, and every refusal by name."""
import json

import pytest

from causalclipseg.config import ClipConfig, ModelConfig, TrainingConfig, apply_settings, load_json, preset, save_json


@pytest.mark.parametrize("name", ["mini", "paper"])
def test_a_preset_survives_its_own_json_file(tmp_path, name):
    for config in preset(name):
        path = tmp_path / f"{type(config).__name__}.json"
        save_json(config, path)
        assert load_json(type(config), path) == config


def test_tuples_come_back_as_tuples(tmp_path):
    config = TrainingConfig(sizes=((0.5, 128), (1.0, 224)))
    save_json(config, tmp_path / "t.json")
    assert load_json(TrainingConfig, tmp_path / "t.json").sizes == ((0.5, 128), (1.0, 224))
    save_json(ModelConfig(clip=ClipConfig(vision_layers=(3, 4, 6, 3))), tmp_path / "m.json")
    assert load_json(ModelConfig, tmp_path / "m.json").clip.vision_layers == (3, 4, 6, 3)


def test_the_paper_preset_holds_what_the_paper_prints():
    model, training = preset("paper")
    assert (model.encoder, model.image_size, model.context_length) == ("RN101-quickgelu", 224, 20)
    assert (training.lam, training.lr, training.optimizer, training.objective) == (0.05, 3e-5, "adam", "causal")
    assert (training.epochs, training.patience, training.weights, training.dice_weight) == (2000, 100, "openai", 0.0)


@pytest.mark.parametrize("change, said", [
    ("scale=[\"a\",\"b\"]", "scale holds"), ("freeze=[1]", "hold names"), ("sizes=[[0.5]]", "sizes holds pairs"), ("sizes=[0.5]", "sizes holds pairs"), ("mu=-1", "mu must not be negative"),
    ("intervention=1", "true or false"), ("train_splits=[[\"train\"]]", "hold names"), ("sizes=[[0.5,Infinity]]", "sizes holds pairs"), ("sizes=[[0.5,160.5]]", "multiple of 32, not 160.5"),
    ("clip={\"text_width\":\"wide\"}", "clip.text_width takes"), ("preset=paper", "choose it with --preset"), ("companions=[1]", "causalclipseg ensemble"),
    ("clip.vision_layers=[1,1]", "four stages"), ("clip.text_width=50", "a multiple of clip.text_heads"), ("clip.text_heads=0", "at least 1"), ("masker_width=0", "at least 1"),
])  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused_in_a_sentence_that_names_it(change, said):
    with pytest.raises(ValueError, match=said):
        apply_settings([change], *preset("mini"))


@pytest.mark.parametrize("word", ["false", "False", "FALSE"])
def test_true_and_false_are_read_in_any_spelling(word):
    model, _ = apply_settings([f"intervention={word}"], *preset("mini"))
    assert model.intervention is False


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(ValueError, match='"giant"'):
        preset("giant")


@pytest.mark.parametrize(
    "kind, data, named",
    [
        (ModelConfig, {"colour": 1}, '"colour"'),
        (ModelConfig, {"clip": {"vision_depth": 1}}, '"clip.vision_depth"'),
        (TrainingConfig, {"epochs": 3, "momentum": 0.9}, '"momentum"'),
    ],
)
def test_an_unknown_key_in_a_file_is_refused_by_name(tmp_path, kind, data, named):
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=named):
        load_json(kind, tmp_path / "c.json")


@pytest.mark.parametrize("text, said", [("{", "not valid JSON"), ("[1]", "one JSON object"), ("\xff\xfe", "not valid JSON")])
def test_a_file_that_holds_no_settings_is_refused(tmp_path, text, said):
    (tmp_path / "c.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=said):
        load_json(ModelConfig, tmp_path / "c.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_json(ModelConfig, tmp_path / "none.json")


@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(image_size=112), "112"), (dict(image_size=0), "image_size"), (dict(mask_channels="pixel"), "'pixel'"), (dict(decoder="deep"), "'deep'"),
        (dict(kernel_size=2), "kernel_size"), (dict(context_length=78), "context_length"), (dict(upsampling_steps=4), "upsampling_steps"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_built_is_refused_at_once(settings, named):
    with pytest.raises(ValueError, match=named):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(epochs=2001), "2000"), (dict(epochs=0), "epochs"), (dict(batch_size=0), "batch_size"), (dict(optimizer="sgd"), "'sgd'"),
        (dict(precision="int8"), "'int8'"), (dict(sizes=((0.5, 100),)), "100"), (dict(sizes=((0.4, 64), (0.3, 96))), "must rise"), (dict(sizes=((1.5, 64),)), "up to 1"), (dict(patience=0), "patience"),
        (dict(accumulate=0), "accumulate"), (dict(lr=0.0), "lr must be above 0"), (dict(lam=-1.0), "lam must not be negative"),
        (dict(ema=1.0), "ema"), (dict(warmup=1.5), "warmup must lie between 0 and 1"), (dict(refer=0.9, generic=0.2), "together"),
        (dict(scale=(1.2, 0.8)), "scale holds the lowest"), (dict(scale=(0.0, 1.2)), "scale holds"), (dict(scale=(1.0,)), "scale holds"), (dict(freeze=("stage5",)), "freeze knows .* not stage5"), (dict(split_rule="mine"), "split_rule"),
        (dict(checkpoint_every="often"), '"10 minutes" or "500 steps", not \'often\''), (dict(checkpoint_every="0 steps"), "checkpoint_every"),
        (dict(checkpoint_every="1.5 steps"), "checkpoint_every"), (dict(noise=-0.1), "noise must not be negative"), (dict(blur=-1.0), "blur must not be negative"),
        (dict(exposure=-0.1), "exposure must lie between 0 .none. and 1"), (dict(exposure=1.0), "exposure must lie between 0"), (dict(start="run", weights="openai"), "either start or weights"),
    ],
)  # fmt: skip
def test_a_training_that_cannot_run_is_refused_at_once(settings, named):
    with pytest.raises(ValueError, match=named):
        TrainingConfig(**settings)


def test_settings_reach_the_config_that_knows_them():
    model, training = apply_settings(
        ["image_size=64", "lr=1e-3", "clip.text_layers=1", "objective=none", "intervention=false", "sizes=[[0.5, 32]]", "lam=1"],
        *preset("mini"),
    )
    assert (model.image_size, model.clip.text_layers, model.intervention) == (64, 1, False)
    assert (training.lr, training.objective, training.sizes, training.lam) == (1e-3, "none", ((0.5, 32),), 1.0)
    assert isinstance(training.lam, float)
    assert preset("mini")[0] == ModelConfig(), "the presets themselves are not changed"


@pytest.mark.parametrize(
    "setting, said",
    [
        ("epochs", "key=value"), ("speed=3", '"speed"'), ("clip.speed=3", '"clip.speed"'), ("nothing.text_layers=3", '"nothing.text_layers"'),
        ("epochs=many", "epochs"), ("epochs=1.5", "whole number"), ("intervention=1", "intervention"), ("image_size=true", "image_size"),
        ("epoch=3", 'Did you mean "epochs"?'), ("clip.text_layer=3", 'Did you mean "clip.text_layers"?'), ("clip=3", "clip"), ("image_size=100", "multiple of 32"),
    ],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_refused_by_name(setting, said):
    with pytest.raises(ValueError, match=said):
        apply_settings([setting], *preset("mini"))


@pytest.mark.parametrize("splits", [[], ["test"], ["train", "test"]])
def test_the_test_split_is_never_trained_on(splits):
    with pytest.raises(ValueError, match="train_splits"):
        TrainingConfig(train_splits=splits)


def test_states_within_an_epoch_come_by_the_clock_or_by_steps():
    assert TrainingConfig().interval() == ("minutes", 10.0)
    for written, read in (("1 minute", ("minutes", 1.0)), ("0.5 minutes", ("minutes", 0.5)), ("500 steps", ("steps", 500.0)), ("1 step", ("steps", 1.0))):
        assert TrainingConfig(checkpoint_every=written).interval() == read
