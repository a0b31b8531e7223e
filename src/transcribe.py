"""Transcribe audio files, or a stream, with the recogniser of a run folder or of an exported file. See `python src/transcribe.py --help`."""

from blocksparse_rnn.cli import transcribe
from blocksparse_rnn.cli.program import run

if __name__ == "__main__":
    run(transcribe.main)
