"""The benchmark of the runtime: it checks results before it measures, and its page repeats its rows."""

import json
from pathlib import Path

import pytest
import torch

from blocksparse_bench import models, products, run
from blocksparse_bench.baselines import Method
from blocksparse_bench.report import bench_page
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runtime.library import native

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = sorted(RESULTS.glob("runtime/**/bench.json"))
FIELDS = {"op", "shape", "backend", "dtype", "block", "batch", "sparsity", "microseconds"}
RATIOS = {"ratio_to_dense", "ratio_to_torch_bsr", "share_of_limit"}

pytestmark = pytest.mark.skipif(native() is None, reason="needs a C++ compiler")


@pytest.fixture
def small(monkeypatch):
    """Matrices that take no time."""
    monkeypatch.setattr(run, "_SHAPES", ((64, 32),))
    monkeypatch.setattr(run, "_SPARSITIES", (0.5, 0.9))
    monkeypatch.setattr(run, "_LAYERS", (("gru", 32), ("rnn", 32)))
    monkeypatch.setattr(run, "_BLOCKS", [4, 16])
    monkeypatch.setattr(products, "STEPS", 3)


def measure(out, only):
    run.run_benchmarks(
        quick=False, only=only, threads=1, seconds=1e-3, runs=[], json=out / "rows.json", out=out
    )


@pytest.mark.parametrize("only", ["products", "layers"])
def test_rows_say_what_was_measured_and_the_page_repeats_it(small, only, tmp_path, capsys):
    threads = torch.get_num_threads()
    measure(tmp_path, only)
    torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "rows.json").read_text())
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["rows"] == rows
    assert all(row.keys() >= FIELDS | RATIOS for row in rows)
    ours = [row for row in rows if row["backend"] == "blocksparse"]
    assert {row["dtype"] for row in ours} == {"fp32", "bf16", "int8"}
    assert all(row["share_of_limit"] is not None and row["limited_by"] for row in ours)
    page = (tmp_path / "bench.md").read_text()
    assert page == bench_page(report)
    assert report["device"] in page
    if only == "products":
        row = next(row for row in ours if row["sparsity"] == 0.9)
        assert f"{row['microseconds']:.0f}; {row['ratio_to_dense']:.0f}x" in page
        assert (tmp_path / "speed.png").stat().st_size > 1000
    assert "blocksparse" in capsys.readouterr().out


def test_whole_models_share_their_time_among_all_parts(tmp_path, monkeypatch):
    """Checked against each other as they are timed; error rates and memory are left to slower tests."""
    monkeypatch.setattr(run, "PAPER_SCALE", (("gru", 32), ("rnn", 32)))
    monkeypatch.setattr(models, "SECONDS", 0.3)
    monkeypatch.setattr(models, "_memory", lambda *_: 1_000_000)
    measure(tmp_path, "models")
    report = json.loads((tmp_path / "bench.json").read_text())
    assert len(report["rows"]) == 16  # two models, blocks of 4 and 16, dense and three number formats
    for row in report["rows"]:
        assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-3)
        assert all(share > 0 for share in row["shares"].values())
        assert row["real_time_factor"] == pytest.approx(row["microseconds"] / 3e5, abs=1e-4)
    page = (tmp_path / "bench.md").read_text()
    assert page == bench_page(report)
    assert "| gru 32 " in page


def test_a_run_that_is_none_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        run.run_benchmarks(
            quick=True, only="models", threads=1, seconds=1, runs=[tmp_path], json=None, out=None
        )


def test_where_rows_cannot_be_written_nothing_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    for json_file, words in [(tmp_path, "is a folder"), (tmp_path / "file" / "rows.json", "cannot write")]:
        with pytest.raises(UserError, match=words):
            run.run_benchmarks(
                quick=True, only="products", threads=1, seconds=1, runs=[], json=json_file, out=None
            )


def test_a_baseline_that_computes_something_else_ends_it(small, tmp_path, monkeypatch):
    wrong = Method("wrong", "fp32", lambda: torch.zeros(1, 64))
    monkeypatch.setattr(products, "sparse_methods", lambda *_: iter([wrong]))
    with pytest.raises(UserError, match="wrong fp32 is off by"):
        measure(tmp_path, "products")
    assert not (tmp_path / "bench.json").exists()


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.parent.relative_to(RESULTS)))
def test_the_committed_tables_are_what_the_committed_rows_give(path):
    pages = path.with_suffix(".md").read_text(encoding="utf-8"), bench_page(json.loads(path.read_text()))
    committed, given = ([line for line in page.splitlines() if line.startswith("|")] for page in pages)
    assert committed == given
