"""The paper's table beside ours, and docs/RESULTS.md: rendered again from the committed results."""

import json
import re
import shutil
from pathlib import Path

import pytest
from report_runs import rows, write_run

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import CONF
from blocksparse_rnn.report.paper.results_page import (
    aligned,
    claim,
    dense_of_size,
    exported_models,
    pairs_in_order,
    reevaluated,
    seed_deviation,
    write_page,
)
from blocksparse_rnn.report.paper.table import PAPER, paper_tables
from blocksparse_rnn.report.results import by_name, read_runs, rows_of

ROOT = CONF.parent


def test_the_papers_rows_stand_beside_ours(tmp_path):
    for seed, cer in enumerate((0.10, 0.12)):
        write_run(tmp_path, cer, seed=seed)
    write_run(tmp_path, 0.15, width=176)
    write_run(tmp_path, 0.2, sparsifier="bp")  # 0.9 is not the target of the paper's row
    write_run(tmp_path, 0.132, sparsifier="bp", target=0.896)
    [table] = paper_tables(rows(tmp_path))
    cells = {line[0]: dict(zip(table.headings, line, strict=True)) for line in table.cells}
    assert list(cells) == [
        *("RNN Dense 1760", "RNN Dense 704", "RNN Sparse 1760", "RNN Sparse 2560", "RNN Sparse 3072"),
        *("GRU Dense 2560", "GRU Dense 704", "GRU Sparse 2560", "GRU Sparse 3584"),
    ]
    assert cells["RNN Dense 1760"]["ours: CER %"] == "11.00 ± 1.41"
    assert cells["RNN Dense 1760"]["seeds"] == "0,1"
    assert cells["RNN Dense 704"]["ours: PERF %"] == "-36.4"
    sparse = cells["RNN Sparse 1760"]
    assert (sparse["ours"], sparse["ours: CER %"], sparse["ours: PERF %"]) == ("rnn 440", "13.20", "-20.0")
    assert (sparse["paper: M"], sparse["paper: CER %"], sparse["paper: PERF %"]) == ("7.3", "17.93", "-16.7")
    assert (sparse["algorithm"], sparse["ours: M"]) == ("BP", "0.47")
    assert cells["GRU Sparse 3584"]["ours: CER %"] == "-"


def test_the_papers_perf_is_that_of_its_cer():
    for paper in PAPER:
        reference = next(row for row in PAPER if row.cell == paper.cell and row.perf == 0)
        assert paper.perf == pytest.approx((reference.cer - paper.cer) / reference.cer, abs=0.002)  # rounded


def test_rows_of_two_recipes_are_two_tables(tmp_path):
    for batch, cer in ((8, 0.1), (64, 0.3)):
        for each, sparsifier in ((cer, "none"), (1.2 * cer, "bp")):
            path = write_run(tmp_path / str(batch), each, sparsifier=sparsifier, target=0.896, batch=batch)
            path.rename(path.with_name(f"{sparsifier}-batch-{batch}"))
    tables = paper_tables(rows(tmp_path))
    assert {table.title.rpartition("trained as ")[2] for table in tables} == {"none-batch-8", "none-batch-64"}
    shown = [[line[9] for line in table.cells if line[9] != "-"] for table in tables]
    assert sorted(shown) == [["10.00", "12.00"], ["30.00", "36.00"]]


def test_reevaluated_runs_are_no_rows_of_the_papers_table(tmp_path):
    write_run(tmp_path, 0.1, weights="outputs/x")
    with pytest.raises(UserError, match="none of these runs is a row of the paper's table"):
        paper_tables(rows(tmp_path))


def test_reevaluated_runs_stand_beside_their_own_first_evaluation(tmp_path):
    noisy = {"hours": 1.5, "vocabulary": 300, "snr_db": [30.0, 40.0], "seed": 0, "typos": 0.1}
    sources = [write_run(tmp_path, cer, seed=seed, data=noisy) for seed, cer in ((0, 0.10), (1, 0.14))]
    again = {"weights": str(sources[0]), "hours": 2.0}
    write_run(tmp_path, 0.02, data=noisy | {"typos": None}, **again)
    write_run(tmp_path, 0.09, data=noisy, decoder={"beam": 8}, **again | {"hours": 3.0})  # of the same data
    write_run(tmp_path, 0.2, width=176, data=noisy)
    runs, _ = read_runs([tmp_path])
    shown = rows_of(runs)
    narrow, dense = (
        next(row for row in shown if row.width == width and not row.reevaluated) for width in (176, 440)
    )
    found = reevaluated(dense, shown, by_name(runs))
    assert (found.row.cer, found.before) == (0.02, 0.10)
    with pytest.raises(UserError, match="was not re-evaluated"):
        reevaluated(narrow, shown, by_name(runs))


def test_pairs_of_rows_are_held_against_the_papers_order(tmp_path):
    for width, target, cer in ((440, 0.9, 0.10), (176, 0.9, 0.13), (440, 0.896, 0.14)):
        write_run(tmp_path, cer, width=width, sparsifier="bp" if target == 0.896 else "none", target=target)
    assert pairs_in_order("rnn", rows(tmp_path)) == (2, 3)  # the paper's narrow model has the highest CER
    assert pairs_in_order("gru", rows(tmp_path)) == (0, 0)


def test_the_deviation_between_seeds_is_a_mean_over_rows_with_several(tmp_path):
    write_run(tmp_path, 0.3, width=640)
    assert seed_deviation(rows(tmp_path)) == 0
    for width, cers in ((440, (0.04, 0.05, 0.06)), (176, (0.1, 0.13, 0.16))):
        for seed, cer in enumerate(cers):
            write_run(tmp_path, cer, width=width, seed=seed)
    assert seed_deviation(rows(tmp_path)) == pytest.approx(0.02)


def test_a_dense_model_of_any_size_lies_on_a_power_law_between_its_neighbours(tmp_path):
    for width, cer, nonzero in ((136, 0.16, 1e6), (176, 0.09, 4e6), (440, 0.04, 64e6)):
        write_run(tmp_path, cer, width=width, result={"parameters": {"nonzero": nonzero}})
    dense = rows(tmp_path)
    assert dense_of_size(2e6, dense) == pytest.approx(0.12)  # the square root of 0.16 * 0.09
    assert dense_of_size(16e6, dense) == pytest.approx(0.06)
    with pytest.raises(UserError, match="no dense models"):
        dense_of_size(65e6, dense)


def test_exported_models_are_read_from_every_benchmark(tmp_path):
    keys = ("op", "model", "backend", "dtype", "file_bytes", "ratio_to_dense")
    for folder, run in (("shipped", "a"), ("shipped-large-blocks", "b")):
        measured = [
            ("model", run, "torch dense", "fp32", 24e6, 1.0),
            ("model", run, "blocksparse", "int8", 1e6, 7.0),
        ]
        models = [dict(zip(keys, values, strict=True)) for values in measured]
        text = json.dumps({"device": "a processor", "variant": "avx2", "rows": models})
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "bench.json").write_text(text)
    found = exported_models([tmp_path])
    assert found == dict.fromkeys([("a", "int8"), ("b", "int8")], (1.0, 24.0, 7.0, "avx2", "a processor"))
    (tmp_path / "shipped/bench.json").write_text("{}")
    with pytest.raises(UserError, match="not a benchmark of models"):
        exported_models([tmp_path])


def test_a_sentence_that_the_results_contradict_is_not_written():
    assert claim(True, lambda: "GLP is lower\n") == "GLP is lower\n"
    with pytest.raises(UserError, match="contradict “GLP is lower”"):
        claim(False, lambda: "GLP is\nlower\n")


def test_a_table_of_the_template_is_aligned():
    lines = aligned("| a | long |\n|---|--:|\n| word | 1 |\n").splitlines()
    assert lines == ["| a    |   long |", "|------|--------|", "| word |      1 |"]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the page of some folders into a temporary one; returns its text."""

    def written(*folders: str) -> str:
        paths = [Path(folder) for folder in folders]
        page = write_page(read_runs(paths)[0], paths, tmp_path / "docs").read_text()
        return page.replace(str(tmp_path / "docs"), "docs")

    monkeypatch.chdir(ROOT)
    return written


def test_the_committed_page_is_that_of_the_committed_results(written, tmp_path):
    page = written("results/mini", "results/demo")
    assert page == (ROOT / "docs/RESULTS.md").read_text()
    pictures = set(re.findall(r"\((results/.*?png)\)", page))
    assert pictures == {f"results/{path.name}" for path in (ROOT / "docs/results").iterdir()}
    assert all((tmp_path / "docs" / picture).stat().st_size > 10_000 for picture in pictures)


def test_figures_come_from_the_result_files(written, tmp_path):
    mini = shutil.copytree(ROOT / "results/mini", tmp_path / "mini")
    [dense] = mini.glob("rnn-440-dense-again-*/result.json")
    [glp] = mini.glob("rnn-640-glp-*-again-*/result.json")
    cer = 2 * json.loads(dense.read_text())["cer"]
    glp.write_text(json.dumps(json.loads(glp.read_text()) | {"cer": cer}))
    lines = [re.sub(" *[|] *", "|", line) for line in written(str(mini)).splitlines()]
    assert f"|RNN Sparse 2560|GLP|rnn 640|11.49|11.6|{100 * cer:.2f}|100.0|3.4|" in lines

    [pruned] = mini.glob("rnn-440-glp-b4-t0.9-*/result.json")
    original = pruned.read_text()
    pruned.write_text(json.dumps(json.loads(original) | {"cer": 0.2}))
    with pytest.raises(UserError, match="contradict “GLP has a lower CER than BP at every sparsity"):
        written(str(mini))
    shutil.rmtree(pruned.parent)
    with pytest.raises(UserError, match=r"rnn 1760 glp 0\.9 4x4, which docs"):
        written(str(mini))
