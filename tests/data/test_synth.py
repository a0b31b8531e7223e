import errno
import hashlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from processes import alive, children, wait_for

from blocksparse_rnn.data.synth import corpus as synth
from blocksparse_rnn.data.synth.corpus import SynthSpeech
from blocksparse_rnn.data.synth.espeak import MEN, WOMEN, Espeak
from blocksparse_rnn.data.synth.speaker import Recipe, Speaker, noise, resample, split_variants
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import only_one

RECIPE = Recipe(
    hours=0.01,
    vocabulary=120,
    accents=("en-us", "en-gb"),
    voices=8,
    snr_db=(20.0, 40.0),
    rate_wpm=(130, 180),
    pitch=(35, 65),
    seed=0,
)


def corpus(folder: Path, **changes) -> SynthSpeech:
    return SynthSpeech(**(asdict(RECIPE) | {"folder": str(folder), "workers": 2} | changes))


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> SynthSpeech:
    made = corpus(tmp_path_factory.mktemp("corpora"))
    made.prepare()
    return made


@pytest.fixture(scope="session")
def speaker() -> Speaker:
    return Speaker(RECIPE)


@pytest.fixture
def copy(built, tmp_path) -> SynthSpeech:
    """A corpus of one's own to damage."""
    made = corpus(tmp_path)
    subprocess.run(["cp", "-r", built.folder, made.folder], check=True)
    return made


def wave(spoken: synth.Spoken) -> np.ndarray:
    return soundfile.read(io.BytesIO(spoken.flac))[0]


class TestCorpus:
    def test_any_number_of_workers_makes_the_same_bytes(self, built, tmp_path):
        alone = corpus(tmp_path, workers=1)
        alone.prepare()
        assert alone.folder.name == built.folder.name
        assert digests(alone.folder) == digests(built.folder)

    def test_another_seed_makes_another_corpus(self, built, tmp_path):
        other = corpus(tmp_path, seed=1)
        other.prepare()
        assert other.folder.name != built.folder.name
        assert not set(digests(other.folder).values()) & set(digests(built.folder).values())

    def test_train_stops_at_the_utterance_that_reaches_the_wanted_length(self, built):
        splits = built.prepare()
        durations = [u.duration for u in splits["train"]]
        assert sum(durations[:-1]) < 36 <= sum(durations)
        for split in ("dev", "test"):
            durations = [u.duration for u in splits[split]]
            assert len(durations) >= 2
            assert sum(durations) >= 3.6
            assert len(durations) == 2 or sum(durations[:-1]) < 3.6
        assert {path.stem for path in (built.folder / "audio/train").iterdir()} == {
            f"{index:06d}" for index in range(len(splits["train"]))
        }

    def test_long_corpora_hold_out_half_an_hour(self):
        assert replace(RECIPE, hours=20.0).seconds("test") == 1800
        assert replace(RECIPE, hours=1.5).seconds("dev") == 540
        assert replace(RECIPE, hours=0.5, held_out=0.5).seconds("dev") == 900
        assert replace(RECIPE, hours=20.0, held_out=0.5).seconds("train") == 72000
        assert replace(RECIPE, hours=20.0, held_out=0.5).seconds("test") == 1800

    def test_the_name_changes_with_each_setting_and_with_nothing_else(self):
        assert RECIPE.name == "synth-0.01h-120w-71ae6f32"
        changes = {"held_out": 0.5, "typos": 0.1, "pitch": (35, 66), "seed": 1}
        names = [replace(RECIPE, **{key: value}).name for key, value in changes.items()]
        assert len({RECIPE.name, *names}) == 5

    def test_typos_change_what_is_written_and_not_what_is_said(self, built, tmp_path):
        mistyped = corpus(tmp_path, typos=0.3)
        whole, wrong = built.prepare(), mistyped.prepare()
        for split, utterances in whole.items():
            assert [u.audio.read_bytes() for u in utterances] == [u.audio.read_bytes() for u in wrong[split]]
            letters = [
                (right, written)
                for said, other in zip(utterances, wrong[split], strict=True)
                for right, written in zip(said.text, other.text, strict=True)
            ]
            assert all(right == written for right, written in letters if not right.isalpha())
            differ = [right != written for right, written in letters if right.isalpha()]
            deviation = (0.3 * 0.7 / len(differ)) ** 0.5
            assert statistics.mean(differ) == pytest.approx(0.3, abs=4 * deviation)
        about = [json.loads((made.folder / "corpus.json").read_text()) for made in (built, mistyped)]
        assert about[0]["unseen_test_trigrams"] == about[1]["unseen_test_trigrams"]

    def test_audio_is_mono_16_bit_flac_below_clipping_and_not_silent(self, built):
        for utterances in built.prepare().values():
            for utterance in utterances:
                about = soundfile.info(utterance.audio)
                assert (about.samplerate, about.channels) == (16000, 1)
                assert (about.format, about.subtype) == ("FLAC", "PCM_16")
                assert about.frames / 16000 == utterance.duration
                samples, _ = soundfile.read(utterance.audio)
                assert 0.03 < np.abs(samples).max() <= 0.951
                assert 1 < len(utterance.text.split()) / utterance.duration < 5

    def test_says_what_it_holds(self, built):
        about = json.loads((built.folder / "corpus.json").read_text())
        assert about["settings"]["vocabulary"] == 120
        assert about["utterances"]["train"] == len(built.prepare()["train"])
        assert 0 <= about["unseen_test_trigrams"] <= 1
        assert built.folder.name.startswith("synth-0.01h-120w-")


class TestVoices:
    @pytest.mark.parametrize("voices", [6, 7, 8, 24, len(WOMEN + MEN)])
    def test_splits_share_no_voice_and_each_has_women_and_men(self, voices):
        splits = split_variants(voices)
        everyone = [variant for variants in splits.values() for variant in variants]
        assert len(everyone) == len(set(everyone)) == voices
        for variants in splits.values():
            assert set(variants) & set(WOMEN)
            assert set(variants) & set(MEN)
        assert len(splits["dev"]) == len(splits["test"]) == max(2, voices // 8)

    def test_samples_do_not_depend_on_what_was_said_before(self):
        espeak = Espeak()
        # f3 breathes, m1 flutters, adam is made by eSpeak's other synthesiser.
        for voice in ("en-us+f3", "en-gb+m1", "en-us+adam"):
            first, _ = espeak.say("seven small boats", voice, 160, 50)
            espeak.say("the old farmer", "en-gb+m5", 200, 20)
            again, _ = espeak.say("seven small boats", voice, 160, 50)
            np.testing.assert_array_equal(first, again)

    def test_every_voice_speaks(self):
        espeak = Espeak()
        for variant in WOMEN + MEN:
            samples, rate = espeak.say("seven small boats", f"en-gb+{variant}", 160, 50)
            assert 0.8 < len(samples) / rate < 3
            assert 1000 < np.abs(samples.astype(int)).max() < 32000

    @pytest.mark.parametrize("voice", ["en-gb+nobody", "en-mars+f3"])
    def test_an_unknown_voice_is_named(self, voice):
        with pytest.raises(UserError, match=f"no voice {voice}".replace("+", r"\+")):
            Espeak().say("hello", voice, 160, 50)

    def test_a_missing_library_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "espeakng_loader", None)
        with pytest.raises(UserError, match=r"^cannot load eSpeak NG .*pip install .*espeakng-loader$"):
            Espeak()

    def test_missing_voice_data_says_what_to_install(self, monkeypatch, tmp_path):
        monkeypatch.setattr("espeakng_loader.get_data_path", lambda: str(tmp_path))
        with pytest.raises(UserError, match=r"cannot read .*pip install .*espeakng-loader$"):
            Espeak()


class TestSound:
    @pytest.mark.parametrize("snr_db", [5.0, 20.0])
    def test_noise_lies_as_far_below_the_speech_as_asked(self, snr_db):
        for index in range(6):  # the colours differ
            noisy = wave(Speaker(replace(RECIPE, snr_db=(snr_db, snr_db))).utterance("train", index))
            clean = wave(Speaker(replace(RECIPE, snr_db=(200.0, 200.0))).utterance("train", index))
            said = np.flatnonzero(np.abs(clean) > 2 / 32768)
            speech = clean[said[0] : said[-1]]
            measured = 10 * np.log10(np.mean(speech**2) / np.mean((noisy - clean) ** 2))
            assert measured == pytest.approx(snr_db, abs=1)

    def test_a_higher_rate_is_shorter(self):
        slow, fast = (
            Speaker(replace(RECIPE, rate_wpm=(r, r))).utterance("train", 0).samples for r in (120, 200)
        )
        assert slow > 1.25 * fast

    def test_a_higher_pitch_has_a_higher_fundamental(self):
        def fundamental(pitch):
            samples, rate = Espeak().say("aaa", "en-gb+m3", 100, pitch)
            voiced = samples[len(samples) // 4 : len(samples) // 2].astype(float)
            spectrum = np.abs(np.fft.rfft(voiced, 1 << 17)) ** 2
            correlation = np.fft.irfft(spectrum)
            shortest, longest = rate // 400, rate // 50
            return rate / (shortest + correlation[shortest:longest].argmax())

        assert 50 < fundamental(20) < 0.9 * fundamental(80) < 300

    def test_noise_colours_fall_as_named(self):
        def slope(colour):
            power = np.abs(np.fft.rfft(noise(1 << 18, colour, 1))) ** 2
            frequency = np.fft.rfftfreq(1 << 18, 1 / 16000)
            band = [power[(frequency > low) & (frequency < 2 * low)].mean() for low in (200, 3200)]
            return np.log2(band[0] / band[1]) / 4

        assert slope("white") == pytest.approx(0, abs=0.1)
        assert slope("pink") == pytest.approx(1, abs=0.1)
        assert slope("brown") == pytest.approx(2, abs=0.1)

    def test_resampling_keeps_a_tone(self):
        seconds = np.arange(22050) / 22050
        tone = np.round(16000 * np.sin(2 * np.pi * 1000 * seconds)).astype(np.int16)
        out = resample(tone, 22050)
        assert len(out) == 16000
        expected = 16000 / 32768 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
        assert np.abs(out - expected)[200:-200].max() < 2e-3


class TestDamage:
    @pytest.mark.parametrize("victim", ["audio/train/000001.flac", "dev.jsonl", "corpus.json"])
    @pytest.mark.parametrize(
        ("damage", "problem"),
        [
            (lambda path: path.unlink(), "is missing"),
            (lambda path: os.truncate(path, path.stat().st_size // 2), "is damaged"),
            (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), "is damaged"),
        ],
    )
    def test_a_damaged_file_is_named(self, copy, victim, damage, problem):
        damage(copy.folder / victim)
        with pytest.raises(UserError) as caught:
            copy.prepare()
        assert (
            str(caught.value)
            == f"{copy.folder / victim} {problem}; delete {copy.folder} to have the corpus rebuilt"
        )

    def test_a_corpus_that_is_there_is_not_built_again(self, copy, monkeypatch):
        monkeypatch.setattr(copy, "_build", None)
        assert copy.prepare()["train"]


def build(folder: Path, hours: float) -> subprocess.Popen:
    """A process of its own that builds a corpus, and that Ctrl-C ends even if the tests run in the background."""
    code = (
        "import signal, sys, pathlib, test_synth; signal.signal(signal.SIGINT, signal.default_int_handler); "
    )
    code += f"test_synth.corpus(pathlib.Path({str(folder)!r}), hours={hours}).prepare()"
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks processes up in /proc")
class TestInterruption:
    def start_long_build(self, folder: Path) -> tuple[subprocess.Popen, list[int]]:
        process = build(folder, 1)
        wait_for(lambda: len(list(folder.glob(".*partial/audio/train/*"))) > 10)
        workers = children(process.pid)
        assert len(workers) == 2
        return process, workers

    def test_a_killed_build_is_never_trusted_and_its_workers_end(self, built, tmp_path):
        process, workers = self.start_long_build(tmp_path)
        process.kill()
        process.communicate()
        wait_for(lambda: not any(map(alive, workers)))
        (partial,) = tmp_path.glob(".*partial")
        assert not list(tmp_path.glob("synth-*"))
        # The leftovers of the very corpus that is built next.
        partial.rename(tmp_path / f".{built.folder.name}.partial")
        again = corpus(tmp_path)
        again.prepare()
        assert digests(again.folder) == digests(built.folder)
        assert not list(tmp_path.glob(".*partial"))

    @pytest.mark.parametrize("victim", ["build", "worker"])
    def test_an_interrupted_build_leaves_neither_corpus_nor_workers(self, tmp_path, victim):
        process, workers = self.start_long_build(tmp_path)
        if victim == "build":
            process.send_signal(signal.SIGINT)
        else:
            os.kill(workers[0], signal.SIGKILL)
        last = process.communicate(timeout=200)[1].splitlines()[-1]
        expected = {
            "build": "KeyboardInterrupt",
            "worker": "UserError: a process that synthesises the corpus died",
        }
        assert expected[victim] in last
        assert not any(map(alive, workers))
        assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


class TestDisk:
    def test_a_full_disk_is_one_line_and_leaves_nothing(self, tmp_path, monkeypatch):
        made = corpus(tmp_path)

        def full(path, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"^cannot write .*No space left.*free some space"):
            made.prepare()
        assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]

    def test_a_folder_that_cannot_be_made_is_one_line(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(UserError, match=r"^cannot write .*Not a directory"):
            corpus(tmp_path / "file" / "corpora").prepare()

    def test_the_second_of_two_builders_waits_and_uses_the_first_ones_corpus(self, copy, monkeypatch):
        ready = copy.folder.rename(copy.folder.with_name("ready"))
        monkeypatch.setattr(copy, "_build", None)
        # Read, never emptied: capsys drops what a thread prints while it is being read.
        printed = io.StringIO()
        monkeypatch.setattr(sys, "stderr", printed)
        result: list = []
        second = threading.Thread(target=lambda: result.append(copy.prepare()), daemon=True)
        with only_one(copy.folder.with_name(f".{copy.folder.name}.lock"), "building"):
            second.start()
            end = time.monotonic() + 60
            while not printed.getvalue().endswith("\n") and time.monotonic() < end:
                time.sleep(0.01)
            assert printed.getvalue() == f"another process is building {copy.folder}; waiting for it\n"
            ready.rename(copy.folder)
        second.join(10)
        assert result[0]["train"]


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hours": 0}, r"data.hours=0: must be above 0 and at most 1000"),
            ({"hours": float("nan")}, r"data.hours=nan: must be above 0"),
            ({"vocabulary": 5000}, r"data.vocabulary=5000: must be from 100 to 1\d\d\d"),
            ({"accents": ["en-su"]}, r"data.accents=en-su: .* did you mean en-us\? There are en-us, "),
            ({"accents": []}, r"data.accents=\[\]: name at least one of en-us"),
            ({"voices": 500}, rf"data.voices=500: must be from 6 to {len(WOMEN + MEN)}"),
            ({"voices": 5}, r"data.voices=5: must be from 6"),
            ({"snr_db": [30, 10]}, r"data.snr_db=\[30, 10\]: must be the lowest and the highest"),
            ({"snr_db": [10]}, r"data.snr_db=\[10\]: must be the lowest and the highest"),
            ({"rate_wpm": [10, 900]}, r"data.rate_wpm=\[10, 900\]: .* from 80 to 450"),
            ({"pitch": [0, 100]}, r"data.pitch=\[0, 100\]: .* from 0 to 99"),
            ({"held_out": 0}, r"data.held_out=0: must be above 0 and at most 1, or null"),
            ({"typos": 0.6}, r"data.typos=0.6: must be above 0 and at most 0.5, or null"),
            ({"seed": -1}, r"data.seed=-1: must not be negative"),
            ({"workers": 0}, r"data.workers=0: must be at least 1"),
        ],
    )
    def test_a_bad_value_is_named_with_what_is_allowed(self, tmp_path, changes, message):
        with pytest.raises(UserError, match=f"^{message}"):
            corpus(tmp_path / "untouched", **changes)
        assert not (tmp_path / "untouched").exists()

    def test_all_mistakes_are_reported_together(self, tmp_path):
        with pytest.raises(UserError, match=r"data.hours=-1.*; data.voices=1: "):
            corpus(tmp_path, hours=-1, voices=1)


def test_a_vocabulary_that_the_hours_exhaust_is_refused_before_anything_is_spoken(tmp_path):
    with pytest.raises(UserError, match=r"data.vocabulary=100: too small for data.hours=10, only \d+% of"):
        corpus(tmp_path, hours=10, vocabulary=100).prepare()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
