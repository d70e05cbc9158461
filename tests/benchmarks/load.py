"""Twenty users at once for a minute: does each get its own mask back, and does the server's memory stay flat?

    python tests/benchmarks/load.py [--users 20] [--seconds 60] [--out FILE.json]

Starts `python app.py` with the shipped model. Each user is a thread with a client of its own, its own synthetic X-ray of
its own size and its own threshold, and compares each mask pixel by pixel with the package's own. Writes results/load.json;
the users run on the same machine as the server and take their share of its cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in MB (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1e3
    raise OSError(f"process {pid} has no memory")


def server_of(port: str) -> int:
    """The process that was started with this port."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        words = entry.read_bytes().split(b"\0")
        if b"app.py" in words and port.encode() in words:
            return int(entry.parent.name)
    raise OSError("the demo is not running")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", default=HERE / "results" / "load.json")
    args = parser.parse_args()
    import gradio_client
    import numpy as np
    from demo_driver import running_app
    from PIL import Image

    from causalclipseg import CausalCLIPSeg, segment
    from causalclipseg._files import write_text
    from causalclipseg.phantoms import sample_phantom

    model_dir = ROOT / "assets" / "models" / "mini"
    model = CausalCLIPSeg.from_pretrained(model_dir)
    with tempfile.TemporaryDirectory() as folder, running_app(model_dir) as address:
        users = []
        for number in range(args.users):
            phantom, path = sample_phantom(number), Path(folder) / f"{number}.png"
            Image.fromarray(phantom.image).resize((200 + 8 * number, 320 - 4 * number)).save(path)
            threshold = 0.3 + 0.02 * number
            users.append((path, phantom.report, threshold, segment(model, path, phantom.report, threshold=threshold).mask))
        server = server_of(address.rsplit(":", 1)[1])
        seconds, wrong, errors, memory, lock = [], [], [], [], threading.Lock()

        def use(path, report, threshold, mask, end):
            client = gradio_client.Client(address, verbose=False, download_files=folder)
            while time.monotonic() < end:
                start = time.monotonic()
                try:
                    answer, _ = client.predict(gradio_client.handle_file(path), report, threshold, api_name="/segment")
                    same = np.array_equal(np.asarray(Image.open(answer)) == 255, mask)
                    with lock:
                        seconds.append(time.monotonic() - start)
                        wrong.extend([] if same else [path.name])
                except Exception as error:  # counted, whatever it is
                    with lock:
                        errors.append(f"{type(error).__name__}: {error}"[:200])

        # A round to warm up: the allocator's and Gradio's own first costs are no leak.
        for share in (0.25, 1.0):
            before = len(seconds)
            end = time.monotonic() + args.seconds * share
            threads = [threading.Thread(target=use, args=(*user, end)) for user in users]
            [thread.start() for thread in threads]
            while any(thread.is_alive() for thread in threads):
                if share == 1.0:
                    memory.append(resident_mb(server))
                time.sleep(1)
            [thread.join() for thread in threads]
    measured = seconds[before:]
    sixth = max(1, len(memory) // 6)
    sixths = [statistics.median(memory[i * sixth : (i + 1) * sixth]) for i in range(6)]
    result = {
        "users": args.users, "seconds": args.seconds, "answers": len(measured), "wrong_masks": len(wrong), "errors": errors[:20],
        "answers_per_second": len(measured) / args.seconds, "wait_seconds": {"median": statistics.median(measured), "worst": max(measured)},
        "memory_mb": {"median_of_each_sixth": sixths, "highest": max(memory)},
        "cores": os.cpu_count(),
    }  # fmt: skip
    write_text(args.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
