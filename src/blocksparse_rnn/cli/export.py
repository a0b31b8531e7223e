"""Export the recogniser of a run as one file with block-sparse weights, for any CPU.

python src/export.py outputs/gru-192-bp-b4-t0.9-s0-1a2b3c gru.safetensors
python src/export.py outputs/gru-192-bp-b4-t0.9-s0-1a2b3c small.safetensors --dtype int8
python src/transcribe.py small.safetensors speech.wav
"""

import argparse
from pathlib import Path

from blocksparse_rnn.inference.export import describe, export_run


def main() -> None:
    """Read the arguments, write the file, print its size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder under outputs/, pruned or dense")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument(
        "--dtype", default="fp32", help="number format of the weights: fp32 (default), bf16 or int8"
    )
    arguments = parser.parse_args()
    print(describe(arguments.out, *export_run(arguments.run, arguments.out, arguments.dtype)))
