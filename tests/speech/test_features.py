"""Features: sizes, normalisation, and a frame that is the same alone and in a batch."""

import pytest
import torch

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.speech.features import Features

SETTINGS = {
    "kind": "linear", "sample_rate": 16000, "window": 0.02, "hop": 0.01, "n_fft": None, "mel_bins": 64,
    "normalisation": "corpus", "specaugment": None,
}  # fmt: skip


def test_paper_features_have_161_bins_and_a_frame_per_hop():
    features = Features(**SETTINGS)
    feature_BTF, frames = features(torch.randn(1, 16000), [16000])
    assert feature_BTF.shape == (1, 99, 161)
    assert frames == [99]
    assert features.frames(319) == 0
    assert features.frames(320) == 1


@pytest.mark.parametrize("normalisation", ["corpus", "utterance"])
@pytest.mark.parametrize("kind", ["linear", "logmel"])
def test_a_frame_does_not_depend_on_its_batch(kind, normalisation):
    features = Features(**SETTINGS | {"kind": kind, "normalisation": normalisation, "n_fft": 512})
    wave_BS = torch.randn(2, 8000) * 0.1
    wave_BS[1, 5000:] = 0
    together, frames = features(wave_BS, [8000, 5000])
    alone, _ = features(wave_BS[1:, :5000], [5000])
    torch.testing.assert_close(together[1, : frames[1]], alone[0], atol=1e-5, rtol=1e-5)
    assert not together[1, frames[1] :].any()


def test_corpus_statistics_make_valid_frames_standard_normal():
    features = Features(**SETTINGS)
    wave_BS = torch.randn(3, 16000) * torch.tensor([[0.1], [0.2], [0.3]])
    samples = [16000, 9000, 12000]
    features.fit([(wave_BS, samples)])
    feature_BTF, frames = features(wave_BS, samples)
    valid = torch.cat([feature_BTF[i, :n] for i, n in enumerate(frames)])
    torch.testing.assert_close(valid.mean(0), torch.zeros(161), atol=1e-3, rtol=0)
    torch.testing.assert_close(valid.std(0), torch.ones(161), atol=1e-2, rtol=0)
    assert {"mean_F", "std_F"} <= features.state_dict().keys()


def test_specaugment_masks_in_training_only():
    masks = {"n_time_masks": 2, "time_mask_param": 20, "n_freq_masks": 2, "freq_mask_param": 30}
    features = Features(**SETTINGS | {"specaugment": masks})
    wave_BS = torch.randn(1, 16000)
    assert (features.train()(wave_BS, [16000])[0] == 0).any()
    assert not (features.eval()(wave_BS, [16000])[0] == 0).any()


def test_a_transform_shorter_than_the_window_is_refused():
    with pytest.raises(UserError, match=r"features\.n_fft=256"):
        Features(**SETTINGS | {"n_fft": 256})
    with pytest.raises(UserError, match=r"features\.window=1e-05: must be at least one sample long"):
        Features(**SETTINGS | {"window": 0.00001})
