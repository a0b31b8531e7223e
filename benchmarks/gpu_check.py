"""All checks that need a GPU: the tests marked gpu, and the benchmarks of a training step and of the runtime's layers.

Writes OUT/train_step.json and OUT/runtime.json, which name the machine. Exits with 2 where there is no GPU,
with 1 where a part fails.

python benchmarks/gpu_check.py [--out results/gpu]
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "gpu")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        print("gpu-check: torch finds no GPU on this machine, so nothing was checked", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    train_step = ["train_step.py", "--device", "cuda", "--widths", "704", "1760", "2560"]
    parts = {
        "tests": ["-m", "pytest", "-m", "gpu", str(HERE.parent / "tests")],
        "training step": [str(HERE / train_step[0]), *train_step[1:], "--json", str(out / "train_step.json")],
        "runtime": [str(HERE / "gpu_runtime.py"), "--json", str(out / "runtime.json")],
    }
    failed = []
    for name, command in parts.items():
        print(f"\n{name}:", flush=True)
        if subprocess.run([sys.executable, *command], cwd=HERE.parent).returncode:
            failed.append(name)
    print(f"\ngpu-check: {'failed: ' + ', '.join(failed) if failed else 'all passed'}, results in {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
