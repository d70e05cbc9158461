"""A larger network that takes over a trained one's weights: the same answers at first, and nothing that stays asleep."""
import dataclasses

import pytest
import torch

from causalclipseg import training
from causalclipseg.config import TrainingConfig
from causalclipseg.growth import grown, grows
from causalclipseg.model import CausalCLIPSeg
from causalclipseg.training import TrainingError
from conftest import lively, make_tiny_config

SENTENCES = ["Infection of the left lung.", "Infection of the upper right lung."]


def larger(config, **clip):
    return dataclasses.replace(config, clip=dataclasses.replace(config.clip, **clip))


@pytest.mark.parametrize("clip", [dict(vision_width=16), dict(vision_layers=(2, 1, 3, 2)), dict(vision_width=12, vision_layers=(1, 2, 1, 1))])
def test_a_grown_network_answers_as_before_and_all_of_it_learns(tmp_path, clip):
    small = make_tiny_config()
    torch.manual_seed(0)
    earlier = lively(CausalCLIPSeg(small)).eval()
    earlier.save_pretrained(tmp_path)
    torch.manual_seed(1)
    model = training.starting_model(larger(small, **clip), TrainingConfig(start=str(tmp_path))).eval()
    images, (tokens, _) = torch.rand(2, 3, 64, 96), model.tokenize(SENTENCES)
    before, after = earlier(images, tokens, confounder=True), model(images, tokens, confounder=True)
    torch.testing.assert_close(after.logits, before.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.confounder_logits, before.confounder_logits, atol=1e-4, rtol=1e-4)
    assert sum(p.numel() for p in model.parameters()) > sum(p.numel() for p in earlier.parameters())

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(3):  # a new block's inside gets its gradient once its last normalisation has left zero
        out = model.train()(images, tokens, confounder=True)
        optimizer.zero_grad()
        (out.logits.square().mean() + out.confounder_logits.square().mean()).backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if name.startswith("vision_encoder") and not p.grad.any()] == []


def test_new_inputs_come_before_the_coordinates():
    old, new = torch.arange(5.0).view(1, 5, 1, 1) + 1, torch.full((1, 8, 1, 1), 9.0)
    state = grown({"maskers.0.coord_conv.conv.weight": old}, {"maskers.0.coord_conv.conv.weight": new})
    assert state["maskers.0.coord_conv.conv.weight"].flatten().tolist() == [1, 2, 3, 0, 0, 0, 4, 5]


def test_only_the_vision_encoder_grows(tmp_path):
    config = make_tiny_config()
    assert grows(config, config) and grows(config, larger(config, vision_width=16))
    for other in (larger(config, vision_width=4), larger(config, text_layers=2), make_tiny_config(fusion_width=32), make_tiny_config(decoder="plain")):
        assert not grows(config, other)
    CausalCLIPSeg(config).save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="or a smaller one"):
        training.starting_model(larger(config, vision_width=4), TrainingConfig(start=str(tmp_path)))
