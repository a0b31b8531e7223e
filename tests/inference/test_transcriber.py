"""From a trained run or its export to text: files, folders, batches, streams, and bad input."""

import io
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch.nn.utils.rnn import pad_sequence

from blocksparse_rnn.cli.transcribe import transcribe, transcribe_stream
from blocksparse_rnn.config.compose import CONF, compose_settings
from blocksparse_rnn.data.audio import load_audio
from blocksparse_rnn.data.manifest import read_manifest
from blocksparse_rnn.errors import PartlyFailed, UserError
from blocksparse_rnn.inference.export import export_run, load_run
from blocksparse_rnn.inference.sources import find_sources
from blocksparse_rnn.inference.stream import LEAST_CHUNK, obstacle
from blocksparse_rnn.inference.transcriber import Transcriber
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runtime.export_file import read_network, write_network
from blocksparse_rnn.speech.greedy import GreedyDecoder
from blocksparse_rnn.training.train import train

RATE = 16000
NOTHING = {"audio": [], "threads": 1, "stream": False}
NOTHING |= dict.fromkeys(("split", "limit", "jsonl", "chunk"))


@pytest.fixture(autouse=True)
def same_threads():
    """--threads sets torch's threads for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def gru(tones, tmp_path_factory):
    """A GRU trained on tones, half of its blocks pruned."""
    data = [f"data.{split}={path}" for split, path in tones.items()]
    base = ["scale=mini", "data=manifest", "logger=csv", "workers=0", "batch=8", "trainer.accelerator=cpu"]
    options = ["model=gru", "width=48", "trainer.max_epochs=24", f"outputs={tmp_path_factory.mktemp('gru')}"]
    pruning = ["sparsifier=bp", "block=4", "target_sparsity=0.5"]
    settings = compose_settings([*base, *data, *options, *pruning])
    train(settings)
    return RunFolder.of(settings).path


@pytest.fixture(scope="module")
def exported(gru, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "gru.safetensors"
    export_run(gru, path)
    return path


@pytest.fixture(scope="module")
def reserved(gru, tmp_path_factory):
    """The same with a larger bias of the blank: rounding must not decide what it makes of silence."""
    folder = changed_run(gru, tmp_path_factory.mktemp("reserved"))
    checkpoint = torch.load(RunFolder(gru).best, weights_only=True)
    checkpoint["state_dict"]["model.output.bias"][-1] += 3
    (folder / "checkpoints/best.ckpt").unlink()
    torch.save(checkpoint, folder / "checkpoints/best.ckpt")
    path = folder / "gru.safetensors"
    export_run(folder, path)
    return path


@pytest.fixture
def audio(tones):
    """Files of tones."""
    return [source.audio for source in find_sources([tones["dev"], tones["test"]])]


def training_texts(run, files):
    """The texts that training's own code gives, in one padded batch."""
    recogniser = load_run(run)[1]
    waves = [load_audio(file, RATE) for file in files]
    with torch.inference_mode():
        return recogniser.transcribe(pad_sequence(waves, batch_first=True), [len(w) for w in waves])


def test_run_and_export_give_the_texts_of_training(gru, exported, audio):
    expected = training_texts(gru, audio)
    assert len(set(expected)) > 3
    for model in (gru, exported):
        transcriber = Transcriber(model, threads=2)
        assert [transcriber(file) for file in audio] == expected  # one by one
        assert [t.text for t in transcriber.transcribe(find_sources(audio))] == expected  # together
    assert set(Transcriber(exported).seconds) == {"features", "convolutions", "recurrent", "fully connected"}


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_fewer_bits_give_almost_the_same_texts(gru, audio, dtype, tmp_path):
    export_run(gru, tmp_path / "m", dtype)
    transcriber = Transcriber(tmp_path / "m")
    texts = training_texts(gru, audio)
    assert sum(text == transcriber(file) for text, file in zip(texts, audio, strict=True)) >= len(audio) - 2


def test_any_sample_rate_and_channel_count(exported, audio, tmp_path):
    transcriber = Transcriber(exported)
    wave, _ = soundfile.read(audio[0])
    left, right = np.repeat(wave, 3), np.zeros(3 * len(wave))
    soundfile.write(tmp_path / "a.wav", np.stack([left, left, right, left], 1), 3 * RATE)
    assert load_audio(tmp_path / "a.wav", RATE).shape == wave.shape
    assert transcriber(tmp_path / "a.wav")


def test_a_manifest_may_name_parts_of_a_file(exported, audio, tmp_path, capsys):
    waves = [load_audio(file, RATE) for file in audio[:2]]
    soundfile.write(tmp_path / "both.wav", torch.cat(waves).numpy(), RATE)
    start = len(waves[0]) / RATE
    row = {"audio_filepath": "both.wav", "offset": start, "duration": len(waves[1]) / RATE, "text": "x"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    run_cli(model=exported, audio=[tmp_path / "in.jsonl"], jsonl=tmp_path / "out.jsonl")
    expected = Transcriber(exported)(audio[1])
    assert capsys.readouterr().out.splitlines()[1:] == [f"  hyp: {expected}", "  ref: x"]
    [utterance] = read_manifest(tmp_path / "out.jsonl")
    assert (utterance.text, utterance.offset) == (expected, start)
    assert utterance.duration == round(row["duration"], 3)
    assert json.loads((tmp_path / "out.jsonl").read_text())["reference"] == "x"


@pytest.mark.parametrize("chunk", [LEAST_CHUNK, 11])
def test_a_stream_gives_the_text_of_the_file(exported, audio, chunk):
    transcriber = Transcriber(exported)
    for seed, file in enumerate(audio):
        wave = load_audio(file, RATE)
        stream, rng, text = transcriber.stream(chunk), np.random.default_rng(seed), ""
        while len(wave):
            count = int(rng.choice([1, 50, 700, 5000]))
            text += stream.feed(wave[:count])
            wave = wave[count:]
        assert text + stream.end() == transcriber(file)


def test_a_long_file_is_streamed_to_the_same_text(exported, audio, monkeypatch):
    transcriber = Transcriber(exported)
    wave = torch.cat([load_audio(file, RATE) for file in audio])
    whole = transcriber.transcribe_waves([wave])
    monkeypatch.setattr("blocksparse_rnn.inference.transcriber._LONG_SECONDS", 0.7)
    assert transcriber.transcribe_waves([wave]) == whole


def held(thing, seen):
    """Bytes of tensors that an object refers to."""
    if isinstance(thing, torch.Tensor):
        return thing.untyped_storage().nbytes()
    if id(thing) in seen or isinstance(thing, type):
        return 0
    seen.add(id(thing))
    inner = thing if isinstance(thing, list | tuple) else getattr(thing, "__dict__", {}).values()
    return sum(held(one, seen) for one in inner)


def test_a_stream_holds_as_much_after_minutes_as_after_seconds(exported):
    transcriber = Transcriber(exported)
    stream, sizes = transcriber.stream(), []
    for _ in range(60):
        stream.feed(0.1 * torch.randn(2 * RATE))
        sizes.append(held(stream, {id(transcriber), id(transcriber.network)}))
    assert max(sizes[5:]) <= 2 * max(sizes[:5])


def test_text_comes_within_the_delay(exported, audio):
    transcriber = Transcriber(exported)
    wave, stream, text = load_audio(audio[0], RATE), transcriber.stream(), ""
    whole = transcriber(audio[0])
    silence = torch.zeros(round(RATE * transcriber.delay(LEAST_CHUNK)))
    for piece in torch.cat([wave, silence]).split(160):
        text += stream.feed(piece)
    assert text.startswith(whole[:-1])  # the last letter may differ before silence and at the end


def run_cli(**arguments):
    transcribe(**NOTHING | arguments)


def test_a_corrupt_file_among_good_ones(exported, audio, tmp_path, capsys):
    bad = [tmp_path / "text.wav", tmp_path / "cut.flac", tmp_path / "nan.wav", tmp_path / "empty.wav"]
    bad[0].write_text("no audio")
    bad[1].write_bytes(audio[0].read_bytes()[:30])
    soundfile.write(bad[2], np.array([0.1, np.nan] * 4000), RATE, subtype="FLOAT")
    bad[3].write_bytes(b"")
    out = tmp_path / "out.jsonl"
    with pytest.raises(PartlyFailed, match="4 of 6 files could not be read"):
        run_cli(model=exported, audio=[audio[0], *bad, audio[1]], jsonl=out)
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    assert all(str(path) in error for path, error in zip(bad, errors, strict=True))
    expected = [Transcriber(exported)(file) for file in audio[:2]]
    assert printed.out == "".join(f"{f}\n  hyp: {t}\n" for f, t in zip(audio, expected, strict=False))
    assert [(u.audio, u.text) for u in read_manifest(out)] == list(zip(audio, expected, strict=False))


@pytest.mark.parametrize(
    ("seconds", "words"), [(2.0, "no speech found"), (0.003, "shorter than a window"), (0, "shorter")]
)
def test_silence_and_next_to_nothing_are_a_note(reserved, tmp_path, capsys, seconds, words):
    soundfile.write(tmp_path / "a.wav", np.zeros(round(seconds * RATE)), RATE)
    run_cli(model=reserved, audio=[tmp_path / "a.wav"])
    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / "a.wav"), "hyp:"]
    [note] = [line for line in printed.err.splitlines() if line.startswith("note: ")]
    assert words in note


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"audio": [Path("nowhere")]}, "nowhere: no such file or folder"),
        ({"audio": [Path("empty")]}, "no audio in empty"),
        ({"model": "nowhere", "audio": [Path("a.wav")]}, "nowhere: neither a run folder nor an export"),
        ({"model": "empty", "audio": [Path("a.wav")]}, "empty: no run folder"),
        ({"audio": [Path("a.wav")], "jsonl": Path("empty")}, "cannot write empty"),
        ({"audio": [Path("a.wav")], "limit": 0}, "--limit 0: must be at least 1"),
        ({"audio": [Path("a.wav")], "threads": 0}, "--threads 0: must be at least 1"),
        ({"audio": [Path("a.wav")], "chunk": 8}, "--chunk 8: only with --stream"),
        ({"audio": [Path("pipe")]}, "pipe: neither a file nor a folder"),
        ({"stream": True, "chunk": 0}, "chunk=0: must be at least 8 frames"),
        ({"split": "test"}, "an exported file has no corpus"),
        ({"audio": [Path("in.jsonl")], "jsonl": Path("in.jsonl")}, "would replace in.jsonl, which is read"),
        ({"audio": [Path("in.jsonl")], "jsonl": Path("a.wav")}, "would replace .*a.wav, which is read"),
        ({"audio": [Path("empty/../in.jsonl")], "jsonl": Path("in.jsonl")}, "would replace"),
        (
            {"audio": [Path("a.wav")], "jsonl": Path("model")},
            "would replace .*gru.safetensors, which is read",
        ),
        ({"audio": [Path("a.wav")], "stream": True}, "--stream reads standard input"),
        ({}, "nothing to transcribe"),
    ],
)
def test_mistakes_are_one_line(exported, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    os.mkfifo("pipe")
    os.link(exported, "model")
    (tmp_path / "in.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1, "text": ""}\n')
    before = {path: path.read_bytes() for path in map(Path, ("a.wav", "in.jsonl", "model"))}
    with pytest.raises(UserError, match=words) as error:
        run_cli(**{"model": exported, **arguments})
    assert "\n" not in str(error.value)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_threads_are_those_of_torch_too(exported, audio, monkeypatch):
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    run_cli(model=exported, audio=audio[:1], threads=3)
    run_cli(model=exported, audio=audio[:1], threads=None)
    assert used == [3]
    with pytest.raises(UserError, match="threads=-1: must be at least 1"):
        Transcriber(exported, threads=-1)


def test_closed_standard_input_is_one_line(exported, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        run_cli(model=exported, stream=True)


@pytest.mark.parametrize("wave", [torch.zeros(1, RATE), torch.tensor(0.5), torch.zeros(RATE).short()])
def test_what_is_no_row_of_floats_is_one_line(exported, wave):
    transcriber = Transcriber(exported)
    with pytest.raises(UserError, match=r"a waveform is one row of floats in \[-1, 1\], not \("):
        transcriber.transcribe_waves([torch.zeros(RATE), wave])
    with pytest.raises(UserError, match="a waveform is one row of floats"):
        transcriber.stream().feed(wave)


def pcm(wave):
    return (wave.numpy() * 32768).round().astype("<i2").tobytes()


class Pipe(io.BytesIO):
    """Standard input that brings a few bytes at a time, also half samples."""

    def read1(self, size=-1):
        return super().read1(min(size, 1001))


@pytest.mark.parametrize("rest", [b"", b"x"])
def test_standard_input_gives_the_text_of_the_file(exported, audio, capsys, rest):
    transcriber, wave = Transcriber(exported), load_audio(audio[0], RATE)
    half = pytest.raises(PartlyFailed, match="ended within a sample; its last byte was left out")
    with half if rest else nullcontext():
        transcribe_stream(transcriber, Pipe(pcm(wave) + rest), LEAST_CHUNK)
    printed = capsys.readouterr()
    assert printed.out == transcriber(audio[0]) + "\n"
    assert "text at most" in printed.err
    assert f"{len(wave) / RATE:.1f} s of audio in" in printed.err
    assert "real-time factor" in printed.err


@pytest.mark.parametrize("data", [b"", b"\0" * 90, b"\0" * 2 * RATE])
def test_streams_of_nothing_end_with_an_empty_line(reserved, data, capsys):
    transcribe_stream(Transcriber(reserved), io.BytesIO(data), LEAST_CHUNK)
    assert capsys.readouterr().out.strip(" ") == "\n"


@pytest.mark.parametrize(
    ("cell", "normalisation", "hop", "decoder", "words"),
    [
        ("rnn", "corpus", 1, GreedyDecoder(), "a bidirectional rnn needs the whole utterance"),
        ("gru", "utterance", 1, GreedyDecoder(), "features.normalisation=utterance needs the whole"),
        ("gru", "corpus", 3, GreedyDecoder(), "features.hop is longer than the window"),
        ("gru", "corpus", 1, object(), "a beam search needs the whole utterance"),
    ],
)
def test_a_recogniser_that_cannot_stream_says_why(cell, normalisation, hop, decoder, words):
    features = SimpleNamespace(normalisation=normalisation, hop_length=hop, n_fft=2)
    assert words in obstacle(features, SimpleNamespace(cell=cell), decoder)


def test_a_stream_of_a_recogniser_that_cannot_is_refused(exported):
    transcriber = Transcriber(exported)
    transcriber.decoder = lambda *_: ["text of a beam search"]
    with pytest.raises(UserError, match="a beam search needs the whole utterance"):
        transcriber.stream()


def changed_run(run, tmp_path, **features):
    """A copy of a run, its features' settings changed after the training."""
    settings = RunFolder(run).settings()
    settings["features"] |= features
    folder = tmp_path / "changed"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "checkpoints/best.ckpt").symlink_to(RunFolder(run).best)
    return folder


def test_features_that_do_not_fit_the_model_are_one_line(gru, exported, tmp_path):
    with pytest.raises(UserError, match=r"does not fit its config\.yaml") as error:
        Transcriber(changed_run(gru, tmp_path, mel_bins=40))
    assert "\n" not in str(error.value)
    export = read_network(exported)
    for features, statistics, words in [
        (export.about["features"] | {"mel_bins": 40}, 40, "have 40 values a frame and its network takes 64"),
        (export.about["features"] | {"mel_bins": 40}, 64, "features or alphabet don't fit"),
        (export.about["features"] | {"wavelets": 1}, 64, "features or alphabet don't fit"),
        ({}, 64, "features or alphabet don't fit"),
    ]:
        about = export.about | {"features": features}
        others = {"features.mean": torch.zeros(statistics), "features.std": torch.ones(statistics)}
        write_network(tmp_path / "m", export.network, "fp32", about, others)
        with pytest.raises(UserError, match=words) as error:
            Transcriber(tmp_path / "m")
        assert "\n" not in str(error.value)
    letters = export.about | {"alphabet": "abc"}
    write_network(tmp_path / "m", export.network, "fp32", letters, export.tensors)
    with pytest.raises(UserError, match="4 letters with the blank, and 29 outputs"):
        Transcriber(tmp_path / "m")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "m"], "nowhere: no run folder"),
        (["RUN", "m", "--dtype", "fp16"], "dtype=fp16: must be one of fp32, bf16, int8"),
        (["RUN", "."], "is a folder; name the file to write"),
        (["RUN", "a-file/m"], "cannot write a-file"),
    ],
)
def test_mistakes_of_an_export_are_one_line(gru, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    run, out, *dtype = [str(gru) if a == "RUN" else a for a in arguments]
    with pytest.raises(UserError, match=words) as error:
        export_run(run, Path(out), *dtype[1:])
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_a_name_that_is_no_utf_8_is_printed_as_it_is():
    program = "import os; from blocksparse_rnn.cli.program import run; run(lambda: print(os.fsdecode(b'caf\\xe9.wav')))"
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", program], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"caf\xe9.wav\n"), done.stderr


def test_the_programs_themselves(gru, audio, tmp_path):
    """A run is exported, the file transcribes a pipe, and ends quietly when its output is closed."""

    def call(program, *arguments, data=b""):
        command = [sys.executable, str(CONF.parent / "src" / program), *map(str, arguments)]
        return subprocess.run(command, input=data, cwd=tmp_path, capture_output=True, timeout=300)

    done = call("export.py", gru, "m.safetensors", "--dtype", "int8")
    assert done.returncode == 0, done.stderr
    assert b"times smaller than dense fp32" in done.stdout
    assert b"of which indices" in done.stdout
    done = call("transcribe.py", "m.safetensors", "--stream", data=pcm(load_audio(audio[0], RATE)) + b"x")
    assert done.returncode == 1
    assert done.stdout.decode() == Transcriber(tmp_path / "m.safetensors")(audio[0]) + "\n"
    assert done.stderr.splitlines()[-1].startswith(b"error: standard input ended within a sample")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(CONF.parent / "src/transcribe.py"), "m.safetensors", str(audio[0])]
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, timeout=300)
    os.close(write)
    assert done.returncode == 141  # a broken pipe
    assert b"Traceback" not in done.stderr
