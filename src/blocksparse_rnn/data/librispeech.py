"""`data=librispeech`: read English, downloaded by torchaudio or already on disk."""

import shutil
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.error import URLError

from torchaudio.datasets import LIBRISPEECH

from blocksparse_rnn.data.inspection import MEMORY, Inspector
from blocksparse_rnn.data.layouts import read_librispeech
from blocksparse_rnn.data.utterance import Utterance
from blocksparse_rnn.errors import UserError, cannot_write
from blocksparse_rnn.files import only_one

Subset = Literal[
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
]
PUBLISHED = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}
"""Utterances of each subset, as published."""


class LibriSpeech:
    """LibriSpeech (Panayotov et al., 2015).

    Args:
        root: the folder `LibriSpeech`, or the one that contains it.
        train: subsets to train on; all three are the usual 960 hours.
        dev: subsets that choose the best checkpoint.
        test: subsets that give the final error rate; papers report test-clean and test-other separately.
        download: download missing subsets.
        longest: maximum duration of an utterance in seconds; None means a minute.
        folder: keeps what was found in audio files.
        workers: threads that inspect audio files; None uses all cores.

    Raises:
        UserError: a subset is in two splits, or `longest` or `workers` isn't above 0.
    """

    def __init__(
        self,
        *,
        root: str,
        train: list[Subset],
        dev: list[Subset],
        test: list[Subset],
        download: bool,
        longest: float | None,
        folder: str,
        workers: int | None,
    ) -> None:
        self.splits = {"train": train, "dev": dev, "test": test}
        chosen = [subset for subsets in self.splits.values() for subset in subsets]
        for subset in chosen:
            if chosen.count(subset) > 1:
                raise UserError(f"data: {subset} is chosen twice; a subset belongs to one split")
        self.root = Path(root)
        self.download = download
        self.inspector = Inspector(Path(folder) / MEMORY, workers, longest)

    def prepare(self) -> dict[str, list[Utterance]]:
        """Find, or download, every subset and inspect its files.

        Raises:
            UserError: a subset is missing, or cannot be downloaded.
        """
        return {
            split: self.inspector([u for subset in subsets for u in self._read(subset)])
            for split, subsets in self.splits.items()
        }

    def _read(self, subset: Subset) -> list[Utterance]:
        folder = self._find(subset)
        utterances = read_librispeech(folder)
        listed = sum(utterance.problem is None for utterance in utterances)
        if listed < PUBLISHED[subset]:
            print(f"data: {folder} has {listed} of the published {PUBLISHED[subset]} utterances")
        # LibriSpeech alone has its texts in capitals.
        return [replace(u, text=u.text.lower()) for u in utterances]

    def _find(self, subset: Subset) -> Path:
        if (self.root / subset).is_dir():
            return self.root / subset
        folder = self.root / "LibriSpeech" / subset
        if self.download:
            self._fetch(subset, folder)
        if not folder.is_dir():
            raise UserError(
                f"{folder} isn't there; set data.root to the folder that contains LibriSpeech, or download it "
                "with data.download=true (6 GB for 100 hours)"
            )
        return folder

    def _fetch(self, subset: Subset, folder: Path) -> None:
        unfinished = self.root / f".{subset}.unfinished"
        with only_one(self.root / f".{subset}.lock", f"downloading {subset}"):
            if folder.is_dir() and not unfinished.exists():
                return
            try:
                # torchaudio takes a folder for a complete subset, even if unpacking was stopped.
                unfinished.touch()
                shutil.rmtree(folder, ignore_errors=True)
                print(f"data: downloading {subset} into {self.root}")
                LIBRISPEECH(self.root, subset, download=True)
                unfinished.unlink()
            except URLError as error:
                raise UserError(
                    f"cannot download {subset}: {error.reason}; unpack it in {self.root} yourself"
                ) from None
            # The connection broke, or the checksum differs.
            except (ConnectionError, TimeoutError, HTTPException, EOFError, RuntimeError) as error:
                raise UserError(
                    f"cannot download {subset}: {str(error) or type(error).__name__}; delete "
                    f"{self.root / subset}.tar.gz if it exists, and start again"
                ) from None
            except OSError as error:
                raise cannot_write(error.filename or self.root, error) from error
