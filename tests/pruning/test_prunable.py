"""Counts of zeros."""

import pytest
import torch
from pruned_training import PATTERNS, network

from blocksparse_rnn.pruning.prunable import count_zeros


def test_sparsity_is_counted_by_gate_too():
    model = network("gru")
    with torch.no_grad():
        model.first.weight_hh[:96] = 0
        model.first.weight_hh[96:120] = 0
    shares = count_zeros(model, PATTERNS).matrices
    gates = [shares[f"first.weight_hh.{gate}"] for gate in "rzn"]
    assert gates == pytest.approx([1, 0.25, 0])
    assert shares["first.weight_hh"] == pytest.approx(1.25 / 3)
