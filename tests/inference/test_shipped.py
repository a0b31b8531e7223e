"""Exported models, the tests that take minutes: trained models, the paper's sizes, hours of audio."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from blocksparse_bench.models import write_random_run
from blocksparse_rnn.config.compose import CONF
from blocksparse_rnn.data.audio import load_audio
from blocksparse_rnn.inference.export import export_run, load_run
from blocksparse_rnn.inference.sources import corpus_split
from blocksparse_rnn.inference.stream import LEAST_CHUNK
from blocksparse_rnn.inference.transcriber import Transcriber
from blocksparse_rnn.speech.metrics import ErrorCounts

ROOT = CONF.parent
WIDTHS = {"fp32": 4, "bf16": 2, "int8": 1}
MOST_CHANGE = {"fp32": 0.0, "bf16": 0.001, "int8": 0.003}
"""By how much a dtype may change the CER, absolute."""

pytestmark = pytest.mark.slow


def cer(texts, references):
    counts = ErrorCounts()
    for text, reference in zip(texts, references, strict=True):
        counts.add(reference, text)
    return counts.cer


def pruned_run(folder, *options):
    folders = [f"outputs={folder / 'outputs'}", f"corpora={folder / 'corpora'}"]
    pruned = ["sparsifier=bp", "block=4", "target_sparsity=0.9"]
    subprocess.run([sys.executable, str(ROOT / "src/train.py"), *options, *pruned, *folders], check=True)
    [path] = (folder / "outputs").glob("*/result.json")
    result = json.loads(path.read_text())
    assert 0.895 <= result["sparsity/prunable"] <= 0.905
    return path.parent, result


def test_a_pruned_rnn_has_a_low_cer_and_so_has_its_export(tmp_path):
    run, result = pruned_run(tmp_path, "experiment=almost_clean", "model=rnn", "width=176", "logger=csv")
    assert result["cer"] <= 0.06
    check_export(run, tmp_path)


def test_a_pruned_gru_has_the_cer_of_its_export(tmp_path):
    # Long dev and test, so that a few letters hardly change the CER.
    run, _ = pruned_run(tmp_path, "experiment=demo", "model=gru", "data.held_out=0.5")
    check_export(run, tmp_path)


def check_export(run, folder):
    recogniser = load_run(run)[1]
    pairs = [
        (load_audio(u.audio, recogniser.features.sample_rate), u.text)
        for split in ("dev", "test")
        for u in corpus_split(run, split)
    ]
    assert len(pairs) >= 100
    waves, references = zip(*pairs, strict=True)
    with torch.inference_mode():
        expected = [recogniser.transcribe(wave[None], [len(wave)])[0] for wave in waves]
    for dtype, width in WIDTHS.items():
        network, sizes = export_run(run, folder / dtype, dtype)
        transcriber = Transcriber(folder / dtype)
        heard = [text for wave in waves for text in transcriber.transcribe_waves([wave])]
        if dtype == "fp32":
            assert heard == expected
        assert abs(cer(heard, references) - cer(expected, references)) <= MOST_CHANGE[dtype]
        matrices = [*(m for layer in network.recurrent for m in layer.matrices), network.fc_HH]
        nonzero = sum(int(m.values_NRC.count_nonzero()) for m in matrices)
        dense = [*(c.weight_OCFT for c in network.convolutions), network.output_VH]
        biases = [*(layer.bias_O for layer in (*network.convolutions, *network.recurrent))]
        floats = sum(map(len, biases)) + len(network.fc_bias_H) + len(network.output_bias_V)
        if dtype == "int8":
            floats += sum(m.shape[0] for m in matrices) + sum(map(len, dense))
        least = (nonzero + sum(w.numel() for w in dense)) * width + 4 * floats + sizes.indices
        assert sizes.file <= 1.1 * least
    if network.cell == "gru":
        transcriber = Transcriber(folder / "fp32")
        for wave, text in zip(waves, expected, strict=True):
            stream = transcriber.stream(LEAST_CHUNK)
            assert "".join([*map(stream.feed, wave.split(1600)), stream.end()]) == text


@pytest.mark.parametrize(("model", "width"), [("rnn", 1760), ("gru", 2560)])
def test_paper_scale_fits_in_a_ninth_and_a_twenty_ninth(model, width, tmp_path):
    write_random_run(tmp_path / "run", [f"model={model}", f"width={width}"], block=4)
    for dtype, times in {"fp32": 9, "int8": 29}.items():
        _, sizes = export_run(tmp_path / "run", tmp_path / "m", dtype)
        assert sizes.dense_fp32 >= times * sizes.file


def resident(process):
    with open(f"/proc/{process.pid}/status", encoding="utf-8") as lines:
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def test_three_hours_of_audio_take_no_more_memory_than_minutes(tmp_path):
    write_random_run(tmp_path / "run", ["scale=mini", "model=gru", "width=64"], block=4, sparsity=0.5)
    export_run(tmp_path / "run", tmp_path / "m")
    command = [sys.executable, str(ROOT / "src/transcribe.py"), str(tmp_path / "m"), "--stream"]
    minute = (1000 * np.random.default_rng(0).standard_normal(60 * 16000)).astype("<i2").tobytes()
    sizes = []
    with open(tmp_path / "text", "wb") as text, open(tmp_path / "notes", "w+b") as notes:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=text, stderr=notes) as process:
            assert process.stdin is not None
            for _ in range(180):
                process.stdin.write(minute)
                sizes.append(resident(process))
            process.stdin.close()
        notes.seek(0)
        assert b"10800.0 s of audio" in notes.read()
    assert process.returncode == 0
    assert max(sizes) <= sizes[5] + 20e6
