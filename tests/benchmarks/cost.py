"""What the presets cost: arithmetic, time of an answer, of an import, start of the demo, memory of training.

    python tests/benchmarks/cost.py [--out FILE.json]

Writes results/cost.json. Times are of the machine it runs on (its cores are recorded); FLOPs count 2 per
multiply-add (torch's FlopCounterMode).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SENTENCE = "Bilateral pulmonary infection, two infected areas, lower left lung and lower right lung."
PORT = 7871


def arithmetic() -> dict:
    """GFLOPs a sample at 224 x 224, with and without the confounder branch, and parameters, for each preset."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from causalclipseg import CausalCLIPSeg, preset

    result = {}
    for name in ("mini", "paper"):
        model = CausalCLIPSeg(preset(name)[0]).eval()
        tokens, _ = model.tokenize([SENTENCE])
        entry = {"parameters": sum(p.numel() for p in model.parameters())}
        for confounder in (False, True):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(torch.zeros(1, 3, 224, 224), tokens, confounder=confounder)
            entry["gflops_both_branches" if confounder else "gflops_causal_path"] = counter.get_total_flops() / 1e9
        result[name] = entry
    return result


def answers(rounds: int = 15) -> dict:
    """Seconds of `segment` with the shipped model on a 224 x 224 picture: the first call and the median of more."""
    import torch

    from causalclipseg import CausalCLIPSeg, segment
    from causalclipseg.phantoms import sample_phantom

    torch.set_num_threads(min(2, os.cpu_count() or 1))
    model = CausalCLIPSeg.from_pretrained(ROOT / "assets" / "models" / "mini")
    phantom = sample_phantom(0)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        segment(model, phantom.image, phantom.report, confounder=True)
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "median": statistics.median(seconds[1:]), "worst": max(seconds[1:])}


def import_seconds(rounds: int = 5) -> float:
    """Seconds that `import causalclipseg` takes in a fresh interpreter, the median of some."""
    code = "import time; start = time.perf_counter(); import causalclipseg; print(time.perf_counter() - start)"
    return statistics.median(float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)) for _ in range(rounds))


def demo_start() -> dict:
    """Seconds from starting `python app.py` to the first answer of /segment."""
    from gradio_client import Client, handle_file

    picture = next((ROOT / "assets" / "examples").glob("*.png"))
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "app.py", "--port", str(PORT)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                client = Client(f"http://127.0.0.1:{PORT}", verbose=False)
                page = time.perf_counter() - start
                client.predict(handle_file(picture), SENTENCE, 0.5, api_name="/segment")
                return {"page": page, "first_answer": time.perf_counter() - start}
            except Exception:
                if process.poll() is not None or time.perf_counter() - start > 120:
                    raise
                time.sleep(0.2)
    finally:
        process.terminate()
        process.wait()


def training_memory() -> dict:
    """Peak resident memory in GB of one epoch of `mini` at batch 16 and 224 x 224, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        from causalclipseg.phantoms import write_dataset

        write_dataset(Path(folder) / "phantoms", 60)
        command = [sys.executable, "-m", "causalclipseg", "train", "--data", f"{folder}/phantoms", "--out", f"{folder}/run",
                   "--set", "batch_size=16", "--set", "epochs=1", "--set", "sizes=[]", "--set", "confounder_every=1"]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return {"peak_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, "batch": 16, "precision": "fp32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=Path(__file__).with_name("results") / "cost.json", type=Path)
    args = parser.parse_args()
    # Memory first: the peak of children is that of the largest, and the demo is one, too.
    result = {"memory": training_memory(), "demo": demo_start(), "import_seconds": import_seconds(), "answer_seconds": answers(), "arithmetic": arithmetic()}
    result |= {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    from causalclipseg._files import write_text

    write_text(args.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
