"""Common layouts of recordings and their texts, in folders or tables, read into utterances of unmeasured length.

txt          any folders of audio files, each beside a text file of the same name
librispeech  chapters with a `*.trans.txt` of lines "ID TEXT" beside ID.flac
commonvoice  a .tsv with the columns `path` and `sentence` beside a folder `clips`
ljspeech     metadata.csv of lines "ID|text|text written out", audio in `wavs`
csv          a table with a heading: a column of files and a column of texts, perhaps offset and duration
jsonl        a manifest, to check and clean it
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from blocksparse_rnn.data.audio import AUDIO_SUFFIXES
from blocksparse_rnn.data.manifest import read_manifest, seconds
from blocksparse_rnn.data.utterance import Utterance
from blocksparse_rnn.errors import UserError

_AUDIO_COLUMNS = ("audio_filepath", "audio", "path", "file", "filename", "file_name", "wav")
_TEXT_COLUMNS = ("text", "transcript", "transcription", "sentence")
_OFFSET_COLUMNS = ("offset", "start")


def read_layout(source: Path, layout: str = "auto") -> list[Utterance]:
    """Recordings and texts of a folder or table; audio without text, or text without audio, gets a `problem`.

    Args:
        source: a folder, or a file that lists recordings.
        layout: a name among `LAYOUTS`, or `auto` to recognise it.

    Raises:
        UserError: `source` is missing, has no known layout, or cannot be read.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    try:
        utterances = LAYOUTS[_recognise(source) if layout == "auto" else layout](source)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {source}: {error}") from None
    if not utterances:
        raise UserError(f"{source}: no recordings in it; {_EXPECTED}")
    return utterances


def _recognise(source: Path) -> str:
    if source.is_file():
        if source.name == "metadata.csv" and "|" in _first_line(source):
            return "ljspeech"
        of_common_voice = (source.parent / "clips").is_dir()
        by_suffix = {".csv": "csv", ".tsv": "commonvoice" if of_common_voice else "csv", ".jsonl": "jsonl"}
        if source.suffix in by_suffix:
            return by_suffix[source.suffix]
        raise UserError(f"{source}: not a folder, .csv, .tsv or .jsonl; {_EXPECTED}")
    if (source / "metadata.csv").is_file() and (source / "wavs").is_dir():
        return "ljspeech"
    if (source / "clips").is_dir() and any(source.glob("*.tsv")):
        return "commonvoice"
    if next(source.rglob("*.trans.txt"), None) is not None:
        return "librispeech"
    return "txt"


def _first_line(path: Path) -> str:
    with open(path, encoding="utf-8-sig") as file:
        return file.readline()


def _txt(source: Path) -> list[Utterance]:
    files = sorted(path for path in source.rglob("*") if path.is_file())
    audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    utterances = [_beside(path, texts.get(path.with_suffix(""))) for path in audio]
    if utterances:
        problem = f"there is no audio of that name beside it ({', '.join(AUDIO_SUFFIXES)})"
        lonely = texts.keys() - {path.with_suffix("") for path in audio}
        utterances += [Utterance(texts[name], 0, "", problem=problem) for name in sorted(lonely)]
    return utterances


def _beside(audio: Path, text: Path | None) -> Utterance:
    if text is None:
        return Utterance(audio, 0, "", problem=f"there is no {audio.with_suffix('.txt').name} beside it")
    try:
        return Utterance(audio, 0, " ".join(text.read_text(encoding="utf-8-sig").split()))
    except UnicodeDecodeError:
        return Utterance(audio, 0, "", problem=f"{text.name} is not written in UTF-8")
    except OSError as error:
        return Utterance(audio, 0, "", problem=f"{text.name} can't be read: {error.strerror}")


def read_librispeech(source: Path) -> list[Utterance]:
    """Utterances of all chapters in a folder; raises UserError where a chapter's texts cannot be read."""
    utterances = []
    for transcripts in sorted(source.rglob("*.trans.txt")):
        for line in _text_lines(transcripts):
            name, _, text = line.strip().partition(" ")
            if name:
                utterances.append(Utterance(transcripts.parent / f"{name}.flac", 0, text.strip()))
    problem = "there is no line for it in a .trans.txt beside it"
    unlisted = {*source.rglob("*.flac")} - {utterance.audio for utterance in utterances}
    return utterances + [Utterance(audio, 0, "", problem=problem) for audio in sorted(unlisted)]


def _text_lines(path: Path) -> list[str]:
    try:
        # Not splitlines(), which also splits at characters such as U+2028.
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _ljspeech(source: Path) -> list[Utterance]:
    table = source / "metadata.csv" if source.is_dir() else source
    utterances = []
    for line in _text_lines(table):
        name, *texts = line.split("|")
        if texts:
            utterances.append(Utterance(table.parent / "wavs" / f"{name}.wav", 0, texts[-1].strip()))
    return utterances


def _commonvoice(source: Path) -> list[Utterance]:
    if source.is_dir():
        tables = sorted(table.name for table in source.glob("*.tsv"))
        if "validated.tsv" not in tables:
            raise UserError(f"{source}: name one of its tables: {', '.join(tables)}")
        source = source / "validated.tsv"
    return _table(source, source.parent / "clips", delimiter="\t", quoting=csv.QUOTE_NONE)


def _csv(source: Path) -> list[Utterance]:
    heading = _first_line(source)
    delimiter = max(",;\t|", key=heading.count)
    return _table(source, source.parent, delimiter=delimiter, strict=True)


def _rows(source: Path, **dialect: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows of a table and their line numbers; `dialect` goes to csv.reader."""
    line = 1
    with open(source, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, **dialect)
        try:
            for row in reader:
                yield line, row
                line = reader.line_num + 1
        except csv.Error as error:
            raise UserError(
                f'{source}, line {line}: {error}; a quote within a text is written "like ""this"""'
            ) from None


def _table(source: Path, folder: Path, **dialect: Any) -> list[Utterance]:
    """Utterances of a table's rows; paths in it are relative to `folder`."""
    rows = _rows(source, **dialect)
    heading = [name.strip().lower() for name in next(rows, (1, []))[1]]
    audio, text = _column(heading, _AUDIO_COLUMNS), _column(heading, _TEXT_COLUMNS)
    if audio is None or text is None:
        raise UserError(
            f"{source}: its heading is {heading}; it needs a column of files ({', '.join(_AUDIO_COLUMNS)}) "
            f"and one of texts ({', '.join(_TEXT_COLUMNS)})"
        )
    offset, duration = _column(heading, _OFFSET_COLUMNS), _column(heading, ("duration",))
    utterances = []
    for number, row in rows:
        if not any(row):
            continue
        try:
            start = _seconds(row, offset)
            utterances.append(Utterance(folder / row[audio], _seconds(row, duration) or 0, row[text], start))
        except (IndexError, ValueError) as error:
            utterances.append(Utterance(source, 0, "", problem=f"line {number} is not a row of it: {error}"))
    return utterances


def _column(heading: list[str], names: Iterable[str]) -> int | None:
    return next((heading.index(name) for name in names if name in heading), None)


def _seconds(row: list[str], column: int | None) -> float | None:
    return None if column is None or not row[column].strip() else seconds(row[column])


def _jsonl(source: Path) -> list[Utterance]:
    return read_manifest(source, keep_bad_lines=True)


LAYOUTS: dict[str, Callable[[Path], list[Utterance]]] = {
    "txt": _txt,
    "librispeech": read_librispeech,
    "commonvoice": _commonvoice,
    "ljspeech": _ljspeech,
    "csv": _csv,
    "jsonl": _jsonl,
}
_EXPECTED = (
    "give a folder of audio files with a .txt of the same name beside each, of LibriSpeech, Common Voice or "
    "LJSpeech, or a .csv with a heading such as: file,text"
)
