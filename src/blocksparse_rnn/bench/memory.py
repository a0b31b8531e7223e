"""Peak memory of one recogniser, in a process of its own: KIND, PATH, SECONDS and THREADS are its arguments."""

import json
import sys
from pathlib import Path

import torch

from blocksparse_rnn.inference.export import load_run
from blocksparse_rnn.inference.transcriber import Transcriber


def _peak() -> int:
    """Largest resident memory so far, in bytes; what `getrusage` says may be the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def measure(kind: str, path: str, seconds: float, threads: int) -> int:
    """Bytes by which the process grows at most."""
    torch.set_num_threads(threads)
    before = _peak()
    with torch.inference_mode():
        if kind == "torch dense":
            recogniser = load_run(path)[1]
            samples = round(seconds * recogniser.features.sample_rate)
            recogniser.transcribe(torch.randn(1, samples), [samples])
        else:
            transcriber = Transcriber(path, threads)
            transcriber.hear([torch.randn(round(seconds * transcriber.features.sample_rate))])
    return _peak() - before


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))))
