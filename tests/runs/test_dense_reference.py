"""The dense run from which a pruned run takes q."""

import pytest
import torch

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.dense_reference import find_dense
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.training.train import train


def test_q_comes_from_the_dense_run_where_there_is_one(tone_settings):
    sparse = ["sparsifier=bp", "schedule.start_epoch=1", "schedule.end_frac=0.4", "schedule.freq=1"]
    given = tone_settings(*sparse, "block=8")
    assert find_dense(given.plain(), "auto") is None
    dense = tone_settings("trainer.max_epochs=2")  # another recipe
    train(dense)
    path = str(RunFolder.of(dense).path)
    found, named = find_dense(given.plain(), "auto"), find_dense(tone_settings("seed=2").plain(), path)
    assert found is not None
    assert named is not None
    assert found.source == named.source == f"dense run {RunFolder.of(dense).path.name}"
    assert all(torch.equal(named.weights[name], weight) for name, weight in found.weights.items())
    assert find_dense(tone_settings(*sparse, "seed=1").plain(), "auto") is None
    assert train(given)["q_source"] == found.source

    with pytest.raises(UserError, match=r"q=.*recurrent.0.weight_ih does not fit, .*48 x 256 .* 96 x 256"):
        tone_settings(*sparse, "width=32", f"q={path}")
    pruned = RunFolder.of(given).path
    with pytest.raises(UserError, match="is a pruned run"):
        tone_settings(*sparse, f"q={pruned}")
    (pruned / "result.json").unlink()
    with pytest.raises(UserError, match="is no finished run"):
        tone_settings(*sparse, f"q={pruned}")
