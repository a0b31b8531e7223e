"""Each transform, and augmentation that is the same for any number of workers and after a resume."""

from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from mistakes import command_line_problems

from blocksparse_rnn.data.audio import load_audio
from blocksparse_rnn.data.augment import Augmenter, Gain, Noise, Reverberation, Speed
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.data.utterance import Utterance
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.speech.alphabet import Alphabet

RATE = 16000
ALPHABET = Alphabet("ab")


def tone(seconds: float = 1.0, hertz: float = 500.0) -> torch.Tensor:
    return (0.3 * torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * RATE)) / RATE)).float()


def apply(transform, wave_S, seed=0, fewest=0):
    return transform(wave_S, RATE, np.random.default_rng(seed), fewest)


def pitch(wave_S) -> float:
    return float(torch.fft.rfft(wave_S).abs().argmax() * RATE / len(wave_S))


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_length_and_pitch(factor):
    faster_S = apply(Speed(factors=[factor]), tone())
    assert len(faster_S) == pytest.approx(RATE / factor, abs=1)
    assert pitch(faster_S) == pytest.approx(500 * factor, abs=2)


def test_speed_never_makes_speech_too_short_for_its_text():
    wave_S = tone()
    assert torch.equal(apply(Speed(factors=[1.25]), wave_S, fewest=13000), wave_S)
    assert len(apply(Speed(factors=[1.25]), wave_S, fewest=12000)) == 12800


def test_noise_has_the_ratio_that_was_asked_for():
    for seed in range(5):
        noisy_S = apply(Noise(probability=1.0, snr_db=[7.0, 7.0], folder=None), tone(), seed)
        noise_S = noisy_S - tone()
        assert 20 * torch.log10(tone().norm() / noise_S.norm()) == pytest.approx(7, abs=0.01)


def test_noise_from_a_folder_goes_round_and_bad_files_are_passed_over(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.25, 2000).numpy(), RATE)
    (tmp_path / "b.wav").write_bytes(b"no audio")
    noisy_S = apply(Noise(probability=1.0, snr_db=[0.0, 0.0], folder=str(tmp_path)), tone(), 1)
    assert pitch(noisy_S - tone()) == pytest.approx(2000, abs=5)
    (tmp_path / "a.wav").unlink()
    assert torch.equal(apply(Noise(probability=1.0, snr_db=[0.0, 0.0], folder=str(tmp_path)), tone()), tone())


def test_of_a_long_recording_of_noise_only_a_random_part_is_read(tmp_path, monkeypatch):
    long_S = torch.cat([tone(30, 1000), tone(30, 3000)])
    soundfile.write(tmp_path / "a.wav", long_S.numpy(), RATE)
    noise, lengths = Noise(probability=1.0, snr_db=[0.0, 0.0], folder=str(tmp_path)), []

    def load(*arguments):
        wave_S = load_audio(*arguments)
        lengths.append(len(wave_S) / RATE)
        return wave_S

    monkeypatch.setattr("blocksparse_rnn.data.augment.load_audio", load)
    found = {round(pitch(apply(noise, tone(), seed) - tone())) for seed in range(20)}
    assert found == {1000, 3000}
    assert max(lengths) < 1.2


def test_a_room_keeps_length_loudness_and_beginning_and_leaves_an_echo(tmp_path):
    wave_S = torch.cat([torch.zeros(800), tone(0.3), torch.zeros(RATE // 2)])
    response = np.zeros(4000)
    response[[100, 3100]] = 1.0, 0.5  # arrives after a while, and once more
    soundfile.write(tmp_path / "room.wav", response, RATE, subtype="FLOAT")
    for folder in (None, str(tmp_path)):
        room = Reverberation(probability=1.0, seconds=[0.3, 0.3], folder=folder)
        echo_S = apply(room, wave_S)
        assert len(echo_S) == len(wave_S)
        assert echo_S.norm() == pytest.approx(float(wave_S.norm()), rel=1e-4)
        assert echo_S[:800].abs().max() < 1e-4
        assert echo_S[6000:8000].abs().max() > 1e-3
    assert echo_S[6000:8000].norm() / echo_S[1000:3000].norm() == pytest.approx(0.5, rel=0.1)


def test_gain_stays_in_its_range():
    gains = [
        20 * np.log10(float(apply(Gain(db=[-6.0, 6.0]), tone(), s).norm() / tone().norm())) for s in range(50)
    ]
    assert -6 <= min(gains) < -4
    assert 4 < max(gains) <= 6


@pytest.fixture
def files(tmp_path):
    utterances = []
    for i in range(6):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, tone(0.5 + 0.1 * i).numpy(), RATE)
        utterances.append(Utterance(path, 0.5 + 0.1 * i, "ab"))
    return utterances


def test_an_utterance_changes_from_epoch_to_epoch_but_not_with_workers_or_ranks(files):
    transforms = [
        Speed(factors=[0.9, 1.1]),
        Reverberation(probability=0.5, seconds=[0.1, 0.3], folder=None),
        Noise(probability=0.9, snr_db=[0.0, 20.0], folder=None),
        Gain(db=[-6.0, 6.0]),
    ]
    augment = Augmenter(transforms, seed=0, fewest_samples=[0] * 9, alphabet=ALPHABET)

    def epoch(number: int, workers: int = 0) -> dict[str, torch.Tensor]:
        data = SpeechData(
            {"train": files, "dev": files, "test": files},
            ALPHABET,
            sample_rate=RATE,
            batch=4,
            seed=0,
            workers=workers,
            augment=augment,
        )
        loader = data.train_dataloader()
        sampler: Any = loader.batch_sampler
        sampler.sampler.set_epoch(number)
        untouched = list(data.val_dataloader())
        assert all(pitch(b.wave_BS[0][: b.samples[0]]) == pytest.approx(500, abs=2) for b in untouched)
        return {f: w for b in loader for f, w in zip(b.files, b.wave_BS, strict=True)}

    first, second = epoch(0), epoch(1)
    for name, wave_S in epoch(0, workers=2).items():
        assert torch.equal(wave_S, first[name])
        assert wave_S.shape != second[name].shape or not torch.equal(wave_S, second[name])


def test_resuming_gives_the_same_augmented_batches(files):
    augment = Augmenter([Gain(db=[-6.0, 6.0])], seed=0, fewest_samples=[0] * 9, alphabet=ALPHABET)

    def data() -> SpeechData:
        splits = {"train": files}
        return SpeechData(splits, ALPHABET, sample_rate=RATE, batch=2, seed=0, workers=2, augment=augment)

    whole, resumed = data(), data()
    loader = whole.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(2)
    resumed.load_state_dict({"epoch": 2, "batches": 1, "utterances": len(files)})
    expected, found = list(loader)[1:], list(resumed.train_dataloader())
    assert len(found) == 2
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.wave_BS, other.wave_BS)


def test_mistakes_in_settings_are_named():
    assert command_line_problems(["augment=standard", "augment.speed=null", "augment.gain.dB=3"]) == [
        "augment.gain.dB: unknown; did you mean augment.gain.db?"
    ]
    with pytest.raises(UserError, match=r"^augment\.gain\.db=\[9, 1\]: must be the lowest and the highest"):
        Gain(db=[9.0, 1.0])
    with pytest.raises(UserError, match="folder=nowhere: no audio in it"):
        Noise(probability=0.5, snr_db=[1.0, 2.0], folder="nowhere")
