"""Settings that must stand before torch is imported, and what several test files share."""
import json
import os

# Spinning OpenMP threads make small operations many times slower on a busy small machine; nothing here needs a network.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["TQDM_DISABLE"] = "1"
for name in ("CAUSALCLIPSEG_FULL", "CAUSALCLIPSEG_DATA"):  # the notebooks' switches
    os.environ.pop(name, None)

from dataclasses import asdict  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 2))

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    """A GPU's sums come in any order, and many tests want the same bits twice: GPUs are left alone but with `-m gpu`."""
    config.addinivalue_line("markers", "gpu: needs a GPU, and is run by `-m gpu`")
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def on_gpu(test):
    """Mark a test that needs a GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and -m gpu")(test))


@pytest.fixture(autouse=True)
def same_start():
    """Each test begins with the same random numbers, and leaves torch's switches as they were."""
    torch.manual_seed(0)
    yield
    if torch.are_deterministic_algorithms_enabled():  # asked first, since setting it imports a compiler
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def tiny_config():
    """A `ModelConfig` of every module at its smallest, 64 x 64 pixels; a fresh one for each test."""
    return make_tiny_config()


def make_tiny_config(**changes):
    from causalclipseg.config import ClipConfig, ModelConfig

    settings = dict(
        clip=ClipConfig(
            embed_dim=32, vision_layers=(1, 1, 1, 1), vision_width=8, vision_heads=4, text_width=16, text_heads=2, text_layers=1
        ),
        image_size=64, masker_width=8, fusion_width=16, carafe_compressed=8, decoder_width=16,
    )  # fmt: skip
    return ModelConfig(**{**settings, **changes})


def tiny_changes():
    """The same config as `key=value`, for `--set`."""
    from causalclipseg.config import ModelConfig

    own, usual = ({f"clip.{key}": value for key, value in config.pop("clip").items()} | config for config in map(asdict, (make_tiny_config(), ModelConfig())))
    return [f"{key}={json.dumps(value)}" for key, value in own.items() if value != usual[key]]


@pytest.fixture(scope="module")
def model():
    """A tiny network whose every weight has a say."""
    from causalclipseg.model import CausalCLIPSeg

    torch.manual_seed(3)
    return lively(CausalCLIPSeg(make_tiny_config())).eval()


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory):
    """A small phantom data set (64 x 64; 36 train, 9 val, 15 test) in the Kaggle layout; read, don't write."""
    from causalclipseg.phantoms import write_dataset

    return write_dataset(tmp_path_factory.mktemp("data") / "phantoms", 60, seed=11, size=64)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory):
    """A folder with a saved tiny model of random weights; read, don't write."""
    from causalclipseg.model import CausalCLIPSeg

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model") / "tiny"
    CausalCLIPSeg(make_tiny_config()).eval().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def address(tiny_model_dir):
    """Where a demo of the tiny model is served."""
    from demo_driver import running_app

    with running_app(tiny_model_dir) as address:
        yield address


def lively(module, seed=0):
    """Give every weight, bias and statistic of normalisation, and maps that are zero, random values (at the start many are 0 or 1)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in ((part.weight, 0.5, 1.5), (part.bias, -0.5, 0.5), (part.running_mean, -0.5, 0.5), (part.running_var, 0.5, 1.5)):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
            elif isinstance(part, torch.nn.Linear) and not part.weight.any():
                part.weight.normal_(std=0.3, generator=generator)
    return module
