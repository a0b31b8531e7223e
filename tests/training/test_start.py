"""start_from=RUN: a training that starts from another run's weights."""

import csv

import pytest
import torch

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.report.results import read_runs
from blocksparse_rnn.runs.checkpoint_files import load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.training.train import train


@pytest.fixture
def source(tone_settings) -> RunFolder:
    settings = tone_settings()
    train(settings)
    return RunFolder.of(settings)


def test_a_training_begins_where_the_other_ended(tone_settings, source):
    still = tone_settings(f"start_from={source.path}", "trainer.max_epochs=2", "optimizer.lr=1e-12", "seed=5")
    train(still)
    run = RunFolder.of(still)
    assert run.path != source.path
    before, after = load_weights(source.best), load_weights(run.best)
    learnt = {name for name, weight in before.items() if weight.is_floating_point() and "running" not in name}
    assert any(name.startswith("features.") for name in learnt)
    for name in learnt:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)


def test_a_dense_recogniser_is_pruned_and_shown_apart(tone_settings, source):
    options = ("sparsifier=bp", "target_sparsity=0.5", "schedule.start_epoch=0", "schedule.freq=1")
    result = train(tone_settings(f"start_from={source.path}", *options))
    assert result["sparsity/prunable"] == pytest.approx(0.5, abs=0.005)
    runs, _ = read_runs([source.path.parent])
    assert {run.group.rpartition(", ")[2] for run in runs} == {"3 epochs", f"started from {source.path.name}"}
    source.best.unlink()  # a finished run no longer needs it, so the same command still finds it finished
    assert train(tone_settings(f"start_from={source.path}", *options)) == result


def test_what_a_pruned_recogniser_lacks_stays_away(tone_settings):
    options = ("sparsifier=bp", "target_sparsity=0.75", "schedule.start_epoch=0", "schedule.freq=1")
    pruned = tone_settings(*options)
    train(pruned)
    before = load_weights(RunFolder.of(pruned).best)
    # Four epochs, of which pruning takes the last step alone.
    later = ("schedule.start_epoch=3", "schedule.end_frac=1", "trainer.max_epochs=4", "seed=3")
    again = tone_settings(f"start_from={RunFolder.of(pruned).path}", *options, *later)
    train(again)
    with open(RunFolder.of(again).metrics) as file:
        sparsity = [
            float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "sparsity/prunable"
        ]
    assert min(sparsity) >= 0.745
    after = load_weights(RunFolder.of(again).best)
    zeros = {name: weight == 0 for name, weight in before.items() if weight.ndim == 2}
    assert sum(int(zero.sum()) for zero in zeros.values()) > 100
    assert all((after[name][zero] == 0).all() for name, zero in zeros.items())


def test_a_broken_one_goes_on_with_its_own_weights(tone_settings, source, power_cut):
    whole = tone_settings(f"start_from={source.path}")
    expected = train(whole)
    broken = tone_settings(f"start_from={source.path}", f"outputs={source.path.parent / 'again'}")
    with power_cut(after=7):
        train(broken)
    assert train(broken)["cer"] == expected["cer"]
    ours, theirs = (load_weights(RunFolder.of(settings).best) for settings in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_cannot_be_started_from_is_one_line(tone_settings, source):
    with pytest.raises(UserError, match=r"^start_from=nowhere: no run folder"):
        tone_settings("start_from=nowhere")
    with pytest.raises(
        UserError, match=r"^start_from=.*: trained with other settings \(model.hidden_size\); repeat"
    ):
        tone_settings(f"start_from={source.path}", "width=32")
    (source.path / "result.json").unlink()
    with pytest.raises(UserError, match=r"^start_from=.*: has no result.json; let the training end first$"):
        tone_settings(f"start_from={source.path}")
