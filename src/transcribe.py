"""Write down what is said in audio files, with the recogniser of a run folder.

python src/transcribe.py outputs/rnn-176-dense-s0-1a2b3c speech.wav more.flac folder/
python src/transcribe.py outputs/rnn-176-dense-s0-1a2b3c manifest.jsonl
python src/transcribe.py outputs/rnn-176-dense-s0-1a2b3c --split test --limit 3
"""

import argparse
from pathlib import Path

from blocksparse_rnn import cli
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.transcriber import Source, Transcriber, corpus_split, find_sources


def program() -> None:
    """Read the arguments, print one transcript after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a run folder under outputs/")
    parser.add_argument("audio", nargs="*", type=Path, help="audio files, folders, manifests (.jsonl)")
    parser.add_argument(
        "--split", choices=("train", "dev", "test"), help="of the corpus the run was trained on"
    )
    parser.add_argument("--limit", type=int, help="transcribe at most so many")
    arguments = parser.parse_args()
    if not arguments.audio and not arguments.split:
        raise UserError("nothing to transcribe; give audio files, folders, manifests, or --split test")
    transcriber = Transcriber(arguments.model)
    sources = find_sources(arguments.audio) if arguments.audio else []
    if arguments.split:
        sources += [Source(u.audio, u.text) for u in corpus_split(arguments.model, arguments.split)]
    sources = sources[: arguments.limit]
    for source, text in zip(sources, transcriber([s.audio for s in sources]), strict=True):
        print(source.audio)
        print(f"  heard: {text}")
        if source.text is not None:
            print(f"  said:  {source.text}")


if __name__ == "__main__":
    cli.run(program)
