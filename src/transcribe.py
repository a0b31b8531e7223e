"""Write down what is said in audio files, with the recogniser of a run folder or of an exported file.

python src/transcribe.py outputs/rnn-176-dense-s0-1a2b3c speech.wav more.flac folder/
python src/transcribe.py rnn.safetensors folder/ --jsonl heard.jsonl
python src/transcribe.py outputs/rnn-176-dense-s0-1a2b3c --split test --limit 3
ffmpeg -loglevel error -i talk.mp3 -f s16le -ac 1 -ar 16000 - | python src/transcribe.py gru.safetensors --stream
"""

import argparse
from pathlib import Path

from blocksparse_rnn import cli
from blocksparse_rnn.transcribing import transcribe


def program() -> None:
    """Read the arguments, print one transcript after the other, or one as it is spoken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a run folder under outputs/, or a file that src/export.py has written")
    parser.add_argument("audio", nargs="*", type=Path, help="audio files, folders, manifests (.jsonl)")
    parser.add_argument(
        "--split", choices=("train", "dev", "test"), help="of the corpus the run was trained on"
    )
    parser.add_argument("--limit", type=int, help="transcribe at most so many")
    parser.add_argument("--jsonl", type=Path, metavar="OUT", help="write a manifest of what was heard")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="hear standard input as it comes: 16-bit little-endian samples, one channel, at the model's rate",
    )
    parser.add_argument(
        "--chunk", type=int, metavar="N", help="frames that a stream computes together (default 8, the least)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: as many as there are cores")
    transcribe(**vars(parser.parse_args()))


if __name__ == "__main__":
    cli.run(program)
