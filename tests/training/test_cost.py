"""The paper's scale on a CPU says what it costs before it starts; nothing else does."""

import re

import pytest
import torch

from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.training.cost import cost_on_cpu


def test_the_missions_sweep_says_what_it_costs_on_a_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("blocksparse_rnn.training.cost._peak", lambda: 1e12)
    where = f"outputs={tmp_path}"
    runs = [
        compose_settings(["model=gru", f"width={width}", "sparsifier=glp", f"block={block}", where])
        for width in (2560, 3584)
        for block in (4, 16, 32)
    ]
    line = cost_on_cpu(runs)
    assert line is not None
    # 6 operations per parameter and frame, 50 frames a second, 100 hours, 20 epochs, at 0.29 of the peak
    days = 6 * 3 * (115.310e6 + 220.054e6) * 50 * 360_000 * 20 / (0.29 * 1e12) / 86400
    expected = r"6 models of 115 to 220 M parameters, 100 hours of speech to synthesise, about (\d+) days"
    found = re.search(expected, line)
    assert found, line
    assert int(found[1]) == pytest.approx(days, abs=1)
    assert line.endswith("scale=mini trains in minutes")


def test_nothing_is_said_at_mini_scale_or_where_there_is_a_gpu(monkeypatch, tmp_path):
    paper = compose_settings([f"outputs={tmp_path}"])
    assert cost_on_cpu([compose_settings(["scale=mini", f"outputs={tmp_path}"])]) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cost_on_cpu([paper]) is None
