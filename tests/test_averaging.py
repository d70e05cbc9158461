"""The mean of several models' weights."""
import pytest
import torch
from causalclipseg import CausalCLIPSeg, averaging

from conftest import make_tiny_config as tiny_config


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
