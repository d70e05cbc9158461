"""Two ways to make one model of several: the mean of their weights, and a file of several networks that answer together.

    theta = 1/n sum_k theta_k           "model soup" (Wortsman et al., ICML 2022)
    f_1, ..., f_n in one file           ensemble (Lakshminarayanan et al., NeurIPS 2017); how they answer: `views.together`

Runs that started from the same weights and were tuned with other seeds or data mostly lie in one basin of the loss; the mean
of their weights then generalises better than each of them, at the cost of one. An ensemble takes any networks,
and costs as much as all of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path

import torch
from safetensors.torch import load_file

from . import reports
from ._files import check_new_folder, write_text
from .baselines import load_model
from .checkpoints import SETTINGS, joined_settings
from .config import COMPANIONS, SILENT
from .data import find_samples
from .model import WEIGHTS_FILE, CausalCLIPSeg, model_folder, quantized, without_rows, write_model

TOKENS = "text_encoder.token_embedding.weight"
REWORDINGS = 10  # of each sentence, so that every word that training could draw is met


def average(models: list[str | os.PathLike], out: str | os.PathLike) -> Path:
    """Write the mean of the weights, and of the normalisation's statistics, of models with the same settings.

    Args:
        models: two or more folders or hub ids. out: a new or empty folder for `config.json` and `model.safetensors`, and `training.json`
            with the splits that any of the models was trained on, where all say it.
    Returns:
        `out`.
    Raises:
        ValueError: fewer than two models, one that cannot be read, models whose settings differ, or a folder that holds something.
    """
    if len(models) < 2:
        raise ValueError("A mean needs at least two models.")
    check_new_folder(out)
    mean = load_model(models[0])
    total = {key: value.double() for key, value in mean.state_dict().items()}
    for name in models[1:]:
        other = load_model(name)
        if other.config != mean.config:
            raise ValueError(f"{name} has other settings than {models[0]}; only models of one shape have a mean.")
        for key, value in other.state_dict().items():
            total[key] += value.double()
    kept = mean.state_dict()
    mean.load_state_dict({key: (value / len(models)).to(kept[key].dtype) for key, value in total.items()})
    mean.save_pretrained(out, dtype=torch.float32)
    _say_how_trained(models, Path(out))
    return Path(out)


def ensemble(
    models: list[str | os.PathLike], out: str | os.PathLike, data: list[str] = (), silent: str | os.PathLike | None = None, bits: int = 8
) -> Path:
    """Write one model that holds several: the first, and the others as its companions (`ModelConfig.companions`).

    Called, it answers as the first does once it is stored in 8 bits (but for words that `data` leaves out); masks and the
    confounder branch are the first one's, too. `average_views` of `segment` and of the command line asks all of them (`views.answering`).

    Args:
        models: two or more folders or hub ids of `CausalCLIPSeg`, the first stored in 8 bits (`model.quantized`). Or one and `silent`: what it
            holds stays as it is stored, and `silent` takes the place of its own, if it has one.
        out: as for `average`.
        data: folders whose training and validation sentences the models were trained with: embeddings of tokens that are in none of these
            sentences, nor in other wordings of them, become zero, since nothing was learnt there, and take no room. Empty:
            all stay.
        silent: one more, trained without sentences, that is asked only where none is given (`ModelConfig.silent`); it reads none.
        bits: 8, or 4 for large weights (`model.quantized`), in which all after the first are stored, without their confounder branch.
    Returns:
        `out`.
    Raises:
        ValueError: fewer than two models, one that cannot be read, is of another kind or holds several itself, other bits, or a folder that holds something.
    """
    alone = len(models) == 1
    if not models or (alone and not silent):
        raise ValueError("An ensemble needs at least two models.")
    if alone and data:
        raise ValueError(f"What {models[0]} holds stays as it is stored, so data can leave nothing out of it; join its networks anew for that.")
    check_new_folder(out)
    networks = [CausalCLIPSeg.from_pretrained(name) for name in models]
    wordless = CausalCLIPSeg.from_pretrained(silent) if silent else None
    first = networks[0].config
    if first.further and not alone:
        raise ValueError(f"{models[0]} holds several networks already; those of an ensemble have none of their own.")
    companions = first.companions if alone else tuple(network.config for network in networks[1:])
    config = dataclasses.replace(first, companions=companions, silent=wordless.config if wordless else None)
    if alone:
        stored = {key: value for key, value in load_file(model_folder(models[0]) / WEIGHTS_FILE).items() if not key.startswith(SILENT)}
    else:
        sentences, stored = training_sentences(data) if data else None, {}
        for k, network in enumerate(networks):
            stored |= _stored(network, sentences, bits, f"{COMPANIONS}{k - 1}." if k else "")
    if wordless:
        stored |= _stored(wordless, [""], bits, SILENT)
    write_model(Path(out), stored, config)
    _say_how_trained([*models, *([silent] if silent else [])], Path(out))
    return Path(out)


def _stored(network: CausalCLIPSeg, sentences: list[str] | None, bits: int, prefix: str) -> dict[str, torch.Tensor]:
    """A network of a file as it is stored there, under names that begin with `prefix`; with "" it is the first, whole and in 8 bits.

    Args:
        sentences: all that it reads; None: any.
    """
    if prefix:
        network.confounder = None
    own = quantized(
        {key: value.contiguous() for key, value in network.state_dict().items()}, dict(network.named_parameters()).keys(), bits if prefix else 8
    )
    if sentences and TOKENS in own:  # a text tower that is not CLIP's keeps all of its vocabulary
        met = torch.zeros(len(own[TOKENS]), dtype=torch.bool)
        met[network.tokenize(sentences)[0].unique()] = True
        own = without_rows(own, TOKENS, met)
    return {prefix + key: value for key, value in own.items()}


def _say_how_trained(models: list[str | os.PathLike], out: Path) -> None:
    if settings := joined_settings(models):
        write_text(out / SETTINGS, json.dumps(settings, indent=1) + "\n")


def training_sentences(data: list[str]) -> list[str]:
    """Each different sentence of the training and validation splits (a run may train on both), other wordings of it, those that name a part
    or no place, and every number: two patients' halves joined in one picture (`join`) have more areas than either."""
    found = {"", reports.GENERIC, reports.EMPTY, *reports.NUMBERS, *map(str, range(20))}
    rng = random.Random(0)
    for report in sorted({s.report for folder in data for s in find_samples(folder, "all") if s.split != "test"}):
        found |= {report, *(reports.paraphrase(report, rng) for _ in range(REWORDINGS))}
    found |= {words.format(f"{zone} {side}".strip()) for words in reports.REFER for side in reports.SIDES for zone in ("", *reports.ZONES)}
    return sorted(found)
