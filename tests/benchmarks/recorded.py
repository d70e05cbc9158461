"""What recorded passes (`graphs`, causalclipseg/recording.py) change on a GPU: nothing but the time of a step.

    python tests/benchmarks/recorded.py --out tests/benchmarks/results/recorded.json

The preset `paper` with the settings of `campaign.py`, in bf16, on random pictures with three sentences. "same": two networks of
the same weights make the same steps, one of them recorded; what is compared are the losses of the first step, before any weight
changed, and of the second, after one. Rounding differs a little: a recorded text encoder runs on all sentences, equal ones too.
"steps": milliseconds of a whole step (both passes, clipping, AdamW; every fourth with the confounder branch) for each picture size.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

BATCH, SIZES, WARM_UP, STEPS, SEED = 48, (128, 160, 224), 8, 20, 0
SENTENCES = ("Bilateral pulmonary infection, two infected areas, upper left lung and lower right lung.",
             "Unilateral pulmonary infection, one infected area, lower left lung.", "")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()

    import torch
    from campaign import OURS, pairs

    from causalclipseg._files import write_text
    from causalclipseg.config import apply_settings, preset
    from causalclipseg.feeding import versions
    from causalclipseg.model import CausalCLIPSeg

    if not torch.cuda.is_available():
        raise SystemExit("Passes are recorded on a GPU alone.")
    model_config, config = apply_settings(pairs(OURS), *preset("paper"))
    torch.manual_seed(SEED)
    model = CausalCLIPSeg(model_config).cuda().to(memory_format=torch.channels_last)
    result = {"device": torch.cuda.get_device_name(), "versions": versions(), "batch_size": BATCH, "seed": SEED, "same": {}, "steps": {}}
    for recorded in (False, True):
        result["same"]["recorded" if recorded else "eager"] = run(model, config, recorded, SIZES[0], 2)["losses"]
    for size in SIZES:
        for recorded in (False, True):
            row = run(model, config, recorded, size, WARM_UP + STEPS)
            result["steps"][f"{size}, {'recorded' if recorded else 'eager'}"] = {"ms": row["ms"], "images_per_second": 1000 * BATCH / row["ms"], "peak_gb": row["peak_gb"]}
        write_text(args.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def run(model, config, recorded: bool, size: int, steps: int) -> dict:
    """So many steps of a copy of the model; losses of all, milliseconds of those after the warm-up."""
    import torch

    from causalclipseg.losses import batch_loss
    from causalclipseg.recording import Recording
    from causalclipseg.schedule import make_optimizer, train_mode

    model = copy.deepcopy(model)
    train_mode(model, config)
    optimizer, called, losses = make_optimizer(model, config), Recording(model) if recorded else model, []
    torch.cuda.reset_peak_memory_stats()
    pictures = batch(size)
    for step in range(steps):
        if step == WARM_UP:
            torch.cuda.synchronize()
            began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = batch_loss(called, pictures, "none" if step % config.confounder_every else config.objective, config)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.total.detach())
    torch.cuda.synchronize()
    ms = 1000 * (time.perf_counter() - began) / (steps - WARM_UP) if steps > WARM_UP else None
    return {"losses": torch.stack(losses).tolist(), "ms": ms, "peak_gb": torch.cuda.max_memory_allocated() / 1e9}


def batch(size: int) -> dict:
    """Random pictures and masks, with sentences in turn."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    images, masks = (torch.rand(BATCH, 1, size, size, generator=generator) for _ in range(2))
    images = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    return {"images": images.cuda(), "masks": (masks > 0.8).float().cuda(), "reports": [SENTENCES[i % 3] for i in range(BATCH)], "names": [str(i) for i in range(BATCH)]}


if __name__ == "__main__":
    main()
