"""Reports over run folders: figures worked by hand, and nothing invented."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from matplotlib import image

from blocksparse_rnn.config.compose import CONF
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.report.curves import read_curves
from blocksparse_rnn.report.dashboard import write_dashboard
from blocksparse_rnn.report.keep import keep_runs
from blocksparse_rnn.report.paper.answers import write_answers
from blocksparse_rnn.report.paper.table import PAPER, paper_tables
from blocksparse_rnn.report.plot import of_several_blocks, pareto_front
from blocksparse_rnn.report.results import read_runs, rows_of
from blocksparse_rnn.report.table import as_csv, as_latex, as_markdown, as_text, run_tables
from blocksparse_rnn.report.workspace import build_workspace

REPORT = CONF.parent / "src" / "report.py"


def sparsifiers(block, target) -> dict[str, dict]:
    """The settings of each sparsifier, as far as a report reads them."""
    schedule = {"_target_": "blocksparse_rnn.pruning.schedule.PaperSchedule"}
    pruning = {"block": block, "target_sparsity": target, "schedule": schedule}
    return {
        "none": {"name": "none"},
        "bp": {"name": "bp", "block_pruning": pruning},
        "glp": {"name": "glp", "block_pruning": pruning, "group_lasso": {"block": block, "lambda_g": 0.2}},
        "gl": {"name": "gl", "group_lasso": {"block": block, "lambda_g": 2.0}},
    }


def write_run(
    folder: Path,
    cer: float | None,
    width=440,
    sparsifier="none",
    block=4,
    seed=0,
    hours=1.5,
    target=0.9,
    **changes,
) -> Path:
    """A run folder with what a report reads; without a CER it is unfinished."""
    path = folder / f"{width}-{sparsifier}-{block}-{seed}-{hours}-{target}"
    path.mkdir(parents=True)
    settings = {
        "model": {"cell": "rnn"},
        "width": width,
        "block": block,
        "seed": seed,
        "sparsifier": sparsifiers(block, target)[sparsifier],
        "optimizer": {"lr": 0.1},
        "scale": {"name": "mini", "row_width": {"w704": 176, "w1760": 440, "w2560": 640}},
        "trainer": {"max_epochs": 12, "max_steps": -1, "max_time": None},
        "data": {"hours": hours, "vocabulary": 300, "snr_db": [30.0, 40.0], "seed": 0, "folder": str(folder)},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(settings | changes))
    if cer is None:
        (path / "status.json").write_text(json.dumps({"state": "failed"}))
        return path
    sparse = sparsifier != "none"
    result = {
        "name": path.name,
        "identity": path.name,
        "cer": cer,
        "wer": 3 * cer,
        "sparsity/total": 0.85 if sparse else 0.0,
        "sparsity/prunable": 0.9 if sparse else 0.0,
        "sparsity/matrices": {"recurrent.0.weight_hh": 0.9, "fc.weight": 0.8} if sparse else {},
        "parameters": {"nonzero": 471_000 if sparse else 4_244_000},
        **{
            "device": "a processor",
            "threads": 1,
            "commit": "abc",
            "wall_seconds": 1800.0,
            "cpu_seconds": 900.0,
        },
    }
    (path / "result.json").write_text(json.dumps(result))
    return path


def rows(folder: Path):
    return rows_of(read_runs([folder])[0])


def test_perf_is_against_the_reference_width_and_the_loss_against_the_same(tmp_path):
    write_run(tmp_path, 0.040)
    write_run(tmp_path, 0.060, width=176)
    write_run(tmp_path, 0.150, width=176, sparsifier="bp")
    write_run(tmp_path, 0.050, width=640, sparsifier="glp", block="8x2")
    dense, narrow, pruned, wide = sorted(
        rows(tmp_path), key=lambda row: (row.width != 440, row.width, row.cer)
    )
    assert dense.perf == dense.against_dense == 0
    assert narrow.perf == pytest.approx((0.04 - 0.06) / 0.04)
    assert pruned.perf == pytest.approx((0.04 - 0.15) / 0.04)
    assert pruned.against_dense == pytest.approx((0.06 - 0.15) / 0.06)
    assert wide.perf == pytest.approx(-0.25)
    assert wide.against_dense is None
    assert (wide.block, pruned.block, dense.block) == ("8x2", "4x4", "")


def named_apart(folder: Path) -> None:
    """Give runs of the same name in other folders identities of their own."""
    for path in folder.glob("*/result.json"):
        path.write_text(path.read_text().replace('"identity": "', f'"identity": "{folder.name}'))


def test_a_dense_run_of_another_architecture_is_no_reference(tmp_path):
    for layers, cer in ((3, 0.1), (5, 0.2)):
        model = {"cell": "rnn", "layers": layers, "hidden_size": 440}
        folder = tmp_path / f"{layers} layers"
        write_run(folder, cer, model=model)
        write_run(folder, 2 * cer, sparsifier="bp", model=model)
        write_run(folder, 3 * cer, width=176, model=model | {"hidden_size": 176})
        named_apart(folder)
    shown = rows(tmp_path)
    assert sorted(row.perf for row in shown) == pytest.approx([-2, -2, -1, -1, 0, 0])
    assert [row.against_dense for row in shown] == pytest.approx([0, 0, 0, 0, -1, -1])


def test_a_loss_is_over_the_seeds_that_both_have(tmp_path):
    for seed, cer in enumerate((0.10, 0.20)):
        write_run(tmp_path, cer, seed=seed)
    for seed, cer in enumerate((0.11, 0.22, 0.11)):
        write_run(tmp_path, cer, sparsifier="bp", seed=seed)
    write_run(tmp_path, 0.30, sparsifier="bp", block=8, seed=7)
    _, pruned, other = rows(tmp_path)
    assert pruned.against_dense == pytest.approx(-0.1)
    assert other.against_dense == pytest.approx(-1.0)  # no seed in common: beside all of them


def test_rows_of_two_recipes_are_two_tables(tmp_path):
    for batch, cer in ((8, 0.1), (64, 0.3)):
        folder = tmp_path / str(batch)
        write_run(folder, cer, batch=batch)
        write_run(folder, 1.2 * cer, sparsifier="bp", target=0.896, batch=batch)
        named_apart(folder)
        for path in list(folder.iterdir()):
            path.rename(path.with_name(f"{path.name}-batch-{batch}"))
    tables = paper_tables(rows(tmp_path))
    told = {table.title.rpartition("trained as ")[2] for table in tables}
    assert told == {"440-none-4-0-1.5-0.9-batch-8", "440-none-4-0-1.5-0.9-batch-64"}
    shown = [[line[9] for line in table.cells if line[9] != "-"] for table in tables]
    assert sorted(shown) == [["10.00", "12.00"], ["30.00", "36.00"]]
    page = write_answers(read_runs([tmp_path])[0], [tmp_path], tmp_path / "docs")
    assert "## By another recipe" in page.read_text()


def test_runs_that_were_tested_again_are_held_against_their_own_recipe(tmp_path):
    """Trained by two recipes, then tested alike; seeds of one recipe are one row."""
    for trained, cer in (("one", 0.1), ("other", 0.2)):
        for seed in (0, 1):
            for sparsifier, factor in (("none", 1), ("bp", 2)):
                weights = f"outputs/{trained}-{seed}"
                path = write_run(
                    tmp_path / trained, factor * cer, sparsifier=sparsifier, seed=seed, weights=weights
                )
                result = json.loads((path / "result.json").read_text())
                (path / "result.json").write_text(json.dumps(result | {"trained": trained}))
        named_apart(tmp_path / trained)
    shown = rows(tmp_path)
    assert [row.seeds for row in shown] == [(0, 1)] * 4
    assert [row.against_dense for row in shown] == pytest.approx([0, 0, -1, -1])


def test_only_a_dense_run_of_the_same_recipe_is_the_reference(tmp_path):
    one, other = {"optimizer": {"lr": 0.1}}, {"optimizer": {"lr": 0.2}}
    beam = {"decoder": {"beam": 50}, "weights": "outputs/x"}
    for name, cer, recipe in (("a", 0.04, one), ("b", 0.08, other), ("c", 0.02, one | beam)):
        write_run(tmp_path / name, cer, **recipe)
        write_run(tmp_path / name, 2 * cer, sparsifier="bp", prunable={"recurrent": []}, **recipe)
        write_run(tmp_path / name, 3 * cer, width=640, sparsifier="bp", **recipe)
        named_apart(tmp_path / name)
    shown = rows(tmp_path)
    assert sorted(row.perf for row in shown) == pytest.approx([-2] * 3 + [-1] * 3 + [0] * 3)
    assert [row.against_dense for row in shown if row.sparsifier == "bp" and row.width == 440] == [-1] * 3
    retested = [row for row in shown if row.retested]
    assert len(retested) == 3
    with pytest.raises(UserError, match="none of these runs is a row of the paper's table"):
        paper_tables(retested)


def test_seeds_are_one_row_with_mean_and_deviation(tmp_path):
    for seed, cer in enumerate((0.04, 0.05, 0.06)):
        write_run(tmp_path, cer, seed=seed)
    for seed, cer in ((0, 0.10), (2, 0.20)):
        write_run(tmp_path, cer, sparsifier="bp", seed=seed)
    dense, pruned = rows(tmp_path)
    assert dense.seeds == (0, 1, 2)
    assert dense.cer == pytest.approx(0.05)
    assert dense.cer_deviation == pytest.approx(0.01)
    assert pruned.seeds == (0, 2)
    assert pruned.cer == pytest.approx(0.15)
    assert pruned.against_dense == pytest.approx((0.05 - 0.15) / 0.05)  # of seeds 0 and 2 alone


def test_runs_on_other_data_are_not_compared(tmp_path):
    write_run(tmp_path, 0.04)
    write_run(tmp_path, 0.10, sparsifier="bp", hours=3.0)
    shown = rows(tmp_path)
    assert [row.perf for row in shown] == [0, None]
    text = as_text(run_tables(shown))
    assert "mini scale, 1.5 h of synthetic speech, 300 words, 30 to 40 dB SNR, 12 epochs" in text
    assert "mini scale, 3 h of synthetic speech" in text


def test_other_voices_and_other_test_sets_are_other_data(tmp_path):
    def groups(folder: Path, *data: dict) -> list[str]:
        for i, of_run in enumerate(data):
            write_run(tmp_path / folder, 0.1, seed=i, data=of_run)
        return sorted(
            {row.group.split(", ", 1)[1].removesuffix(", 12 epochs") for row in rows(tmp_path / folder)}
        )

    usual = {"hours": 1.5, "vocabulary": 300, "snr_db": [30.0, 40.0], "seed": 0}
    names = groups("speech", usual, usual | {"voices": 24}, usual | {"voices": 12, "accents": ["en-us"]})
    first = "1.5 h of synthetic speech, 300 words, 30 to 40 dB SNR"
    assert names == [first, f"{first}, accents=[en-us], voices=12"]
    names = groups("own", *({"train": "a.jsonl", "test": test} for test in ("b.jsonl", "c.jsonl")))
    assert names == ["a.jsonl, tested on b.jsonl", "a.jsonl, tested on c.jsonl"]


def test_rows_with_the_same_choices_are_told_apart_by_name(tmp_path):
    for alpha in (0.5, 1.0):
        path = write_run(tmp_path / str(alpha), 0.1, decoder={"alpha": alpha}, weights="outputs/x")
        result = json.loads((path / "result.json").read_text()) | {
            "identity": str(alpha),
            "dev_cer": alpha / 10,
        }
        (path / "result.json").write_text(json.dumps(result))
        path.rename(path.with_name(f"again-{alpha}"))
    [table] = run_tables(rows(tmp_path))
    assert table.headings[-2:] == ("dev CER %", "run")
    assert [line[-2:] for line in table.cells] == [("5.00", "again-0.5"), ("10.00", "again-1.0")]


def test_the_markdown_of_a_small_table(tmp_path):
    write_run(tmp_path, 0.04)
    write_run(tmp_path, 0.05, sparsifier="bp")
    lines = as_markdown(run_tables(rows(tmp_path))).splitlines()
    assert [line.split() for line in lines[2:3] + lines[4:]] == [
        [
            "|",
            "model",
            "|",
            "sparsifier",
            "|",
            "block",
            "|",
            "seeds",
            "|",
            "CER",
            "%",
            "|",
            "WER",
            "%",
            "|",
            "sparsity",
            "%",
            "|",
            "of",
            "prunable",
            "%",
            "|",
            "nonzero",
            "|",
            "PERF",
            "%",
            "|",
            "vs",
            "same",
            "width",
            "%",
            "|",
        ],
        [
            "|",
            "rnn",
            "440",
            "|",
            "dense",
            "|",
            "-",
            "|",
            "0",
            "|",
            "4.00",
            "|",
            "12.0",
            "|",
            "0.0",
            "|",
            "0.0",
            "|",
            "4.244",
            "M",
            "|",
            "0.0",
            "|",
            "0.0",
            "|",
        ],
        [
            "|",
            "rnn",
            "440",
            "|",
            "bp",
            "|",
            "4x4",
            "|",
            "0",
            "|",
            "5.00",
            "|",
            "15.0",
            "|",
            "85.0",
            "|",
            "90.0",
            "|",
            "0.471",
            "M",
            "|",
            "-25.0",
            "|",
            "-25.0",
            "|",
        ],
    ]


def test_csv_has_all_digits_and_latex_a_line_for_each_row(tmp_path):
    write_run(tmp_path, 0.0412345)
    write_run(tmp_path, 0.05, sparsifier="bp")
    [dense, pruned] = csv.DictReader(io.StringIO(as_csv(rows(tmp_path))))
    assert float(dense["cer"]) == 0.0412345
    assert (pruned["block"], pruned["seeds"], pruned["target"]) == ("4x4", "0", "0.9")
    latex = as_latex(run_tables(rows(tmp_path)))
    assert latex.count(r"\\") == 3
    assert latex.startswith("% mini scale")


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
    for paper in PAPER:  # its PERF is that of its CER, to rounding
        reference = next(row for row in PAPER if row.cell == paper.cell and row.perf == 0)
        assert paper.perf == pytest.approx((reference.cer - paper.cer) / reference.cer, abs=0.002)


def test_a_run_that_lies_in_two_places_counts_once(tmp_path):
    write_run(tmp_path, 0.04)
    runs, _ = read_runs([tmp_path])
    assert keep_runs(runs, tmp_path / "kept") == 1
    runs, others = read_runs([tmp_path])
    assert len(runs) == 1
    assert "counted once" in others[0]
    assert rows_of(runs)[0].seeds == (0,)


def test_two_runs_of_one_name_are_not_merged(tmp_path):
    for folder, seed in (("a", 0), ("b", 1)):
        write_run(tmp_path / folder, 0.04, seed=seed).rename(tmp_path / folder / "run")
    runs, _ = read_runs([tmp_path])
    for write in (keep_runs, lambda runs, folder: write_answers(runs, [], folder)):
        with pytest.raises(UserError, match="have the same name"):
            write(runs, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.json"))


def test_a_page_of_answers_needs_a_folder(tmp_path):
    write_run(tmp_path / "runs", 0.04)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_answers(read_runs([tmp_path / "runs"])[0], [], tmp_path / "file")


def test_what_is_kept_names_no_folder_of_the_machine(tmp_path):
    outputs, corpora = tmp_path / "outputs", str(tmp_path / "corpora")
    manifests = dict.fromkeys(("train", "test"), "a.jsonl")
    source = write_run(
        outputs, 0.04, outputs=str(outputs), corpora=corpora, data=manifests | {"folder": corpora}
    )
    keep_runs(read_runs([outputs])[0], tmp_path / "kept")
    kept = yaml.safe_load((tmp_path / "kept" / source.name / "config.yaml").read_text())
    expected = yaml.safe_load((source / "config.yaml").read_text())
    expected |= {"outputs": "outputs", "corpora": "corpora", "data": manifests | {"folder": "corpora"}}
    assert kept == expected


def test_curves_leave_out_what_a_crash_cut(tmp_path):
    path = write_run(tmp_path, 0.04)
    cut = "step,epoch,metric,value,seconds\n1,0,a,0.5,1.0\n2,0,a,0.2\n3,0,a,0.4,3,0,a,0.3,4.0\n4,0,a,nan,5.0\n5,0,"
    (path / "metrics.csv").write_text(cut)
    [run], _ = read_runs([tmp_path])
    steps, values = read_curves(run)["a"]
    assert steps == [1, 3, 4]
    assert values[:2] == [0.5, 0.4]


def test_the_page_to_explore_holds_no_numbers_that_json_lacks(tmp_path):
    path = write_run(tmp_path, 0.04)
    rows = "1,0,val/loss,nan,1.0\n2,0,val/loss,0.5,1.0\n3,0,val/loss,inf,1.0\n"
    (path / "metrics.csv").write_text(f"step,epoch,metric,value,seconds\n{rows}")
    write_dashboard(read_runs([tmp_path])[0], tmp_path / "page.html")
    assert '"val/loss":[[1,2,3],[null,0.5,null]]' in (tmp_path / "page.html").read_text()


def test_the_pareto_front_is_what_no_other_beats_in_both():
    points = [(0.8, 0.05), (0.9, 0.06), (0.9, 0.07), (0.85, 0.065), (0.95, 0.10), (0.7, 0.051)]
    assert pareto_front(points) == [(0.8, 0.05), (0.9, 0.06), (0.95, 0.10)]


def test_beside_their_blocks_stand_rows_that_differ_in_nothing_else(tmp_path):
    write_run(tmp_path, 0.05)
    write_run(tmp_path, 0.06, width=176)
    for block in (4, "8x2"):
        write_run(tmp_path, 0.07, sparsifier="bp", block=block)
    write_run(tmp_path, 0.08, sparsifier="glp", block=4)
    write_run(tmp_path, 0.09, width=176, sparsifier="bp", block=4)
    write_run(tmp_path, 0.09, sparsifier="bp", block=16, hours=3)
    chosen = [(row.model, row.algorithm, row.block) for row in of_several_blocks(rows(tmp_path))]
    assert chosen == [("rnn 440", "dense", ""), ("rnn 440", "bp", "4x4"), ("rnn 440", "bp", "8x2")]


def test_rows_stand_in_order(tmp_path):
    for sparsifier, block in (("glp", 4), ("bp", 16), ("bp", "8x2"), ("bp", 4), ("none", 4)):
        write_run(tmp_path, 0.1, sparsifier=sparsifier, block=block)
    write_run(tmp_path, 0.1, width=176)
    order = [(row.width, row.sparsifier, row.block) for row in rows(tmp_path)]
    blocks = [("none", ""), ("bp", "4x4"), ("bp", "8x2"), ("bp", "16x16"), ("glp", "4x4")]
    assert order == [(176, "none", ""), *((440, *each) for each in blocks)]


def test_the_program_writes_a_page_and_a_picture(tmp_path):
    for width in (176, 440):
        write_run(tmp_path / "runs", 0.04, width=width)
        for block in (4, 16):
            write_run(tmp_path / "runs", 0.1, width=width, sparsifier="bp", block=block)
    command = [sys.executable, str(REPORT), str(tmp_path / "runs"), "--out", str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert ["rnn", "176", "bp", "16x16"] in [line.split()[:4] for line in done.stdout.splitlines()]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        *("report.md", "report.tex", "report.csv", "dashboard.html"),
        *("cer-sparsity.png", "cer-nonzero.png", "cer-block.png", "schedules.png", "layers.png"),
    }
    assert "(cer-sparsity.png)" in (tmp_path / "report" / "report.md").read_text()
    height, width, _ = image.imread(tmp_path / "report" / "cer-sparsity.png").shape
    assert 1000 < width < 2000
    assert 500 < height < 1500
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [*command[:-1], str(tmp_path / "file")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write")


def write_shipped(folder, name):
    measured = [
        ("torch dense", "fp32", 24e6, 1.0),
        ("blocksparse", "fp32", 3e6, 5.0),
        ("blocksparse", "int8", 1e6, 7.0),
    ]
    keys = ("backend", "dtype", "file_bytes", "ratio_to_dense")
    rows = [{"op": "model", "model": name} | dict(zip(keys, values, strict=True)) for values in measured]
    (folder / "shipped").mkdir()
    (folder / "shipped/bench.json").write_text(
        json.dumps({"device": "a processor", "variant": "avx2", "rows": rows})
    )


def test_the_answers_say_what_the_runs_say(tmp_path):
    for width, cer in ((440, 0.10), (176, 0.13), (640, 0.098)):
        write_run(tmp_path / "runs", cer, width=width)
    for target, bp, glp in ((0.8, 0.11, 0.105), (0.9, 0.12, 0.125)):
        write_run(tmp_path / "runs", bp, sparsifier="bp", target=target)
        write_run(tmp_path / "runs", glp, sparsifier="glp", target=target)
    write_run(tmp_path / "runs", 0.2, sparsifier="gl")
    for block, cer in ((4, 0.1095), (16, 0.14)):
        write_run(tmp_path / "runs", cer, width=640, sparsifier="bp", block=block)
    write_run(tmp_path / "runs", 0.02, hours=3.0)
    write_shipped(tmp_path / "runs", "640-bp-16-0-1.5-0.9")
    (tmp_path / "runs/shipped").rename(tmp_path / "runs/shipped-large-blocks")
    write_shipped(tmp_path / "runs", "640-bp-4-0-1.5-0.9")  # measured at another time
    curve = "".join(f"{step},0,val/cer,{0.11 if step <= 80 else 0.1},1.0\n" for step in range(10, 101, 10))
    (tmp_path / "runs/440-none-4-0-1.5-0.9/metrics.csv").write_text(
        f"step,epoch,metric,value,seconds\n{curve}"
    )
    runs, _ = read_runs([tmp_path / "runs"])
    page = write_answers(runs, [tmp_path / "runs"], tmp_path / "docs").read_text()
    flat = " ".join(page.split())
    assert "11 runs, 5.5 hours of training" in flat
    assert "Of the RNNs, 1 of 1 pairs of rows stand in the paper's order of CER" in flat
    assert "0.5 hours of processor time for 2 runs" in flat
    assert "The dense rnn 440 reaches 10.00" in flat
    assert "BP 4x4 at 80 %: 11.00 (10.0 % worse)" in flat
    assert "GLP 4x4 at 90 %: 12.50 (25.0 % worse)" in flat
    assert "best block is 4x4 (10.95), the worst 16x16 (14.00)" in flat
    assert "GLP hears better than BP at 1 of 2 sparsities (80 %)." in flat
    lines = [re.sub(" *[|] *", "|", line) for line in page.splitlines()]
    assert "|of prunable %|BP 4x4|GLP 4x4|" in lines
    assert "|80.0|11.00|10.50|" in lines
    assert "|16x16|14.00|" in lines
    assert "hears better than 1 of these 1" in flat
    assert "|2|90.0|20.00|90.0|10.50|" in lines  # a lasso beside a GLP row with no fewer zeros
    assert "not zero the best is rnn 440, GLP 4x4, 90.0 % sparse, with 10.50" in flat
    assert "3 h of synthetic speech" in flat
    assert "| rnn 440 | 10.00 | 0.0 | -9.1 |" in re.sub(" +", " ", page)
    assert "|CER of 5 to 25 %|yes: 9.80 to 13.00|" in lines
    assert "|settled: changes by less than 3 % over the last fifth of a training|no: rnn 440 9.1 %|" in lines
    assert "|the 704-row at least 15 % worse than the reference|yes: 30.0 %|" in lines
    assert "|the widest less than 5 % better than the reference|yes: rnn 640 2.0 %|" in lines
    [shipped] = [line.split("|")[1:-1] for line in page.splitlines() if "| 16x16" in line and "3.00" in line]
    assert [cell.strip() for cell in shipped] == [
        "16x16",
        "avx2",
        "3.00",
        "8.0",
        "5.0",
        "1.00",
        "24.0",
        "7.0",
    ]
    for picture in re.findall(r"\((results/.*?png)\)", page):
        assert (tmp_path / "docs" / picture).stat().st_size > 10_000
    assert page.count("](results/") == 6
    (tmp_path / "runs/shipped/bench.json").write_text("{}")
    with pytest.raises(UserError, match="not a benchmark of models"):
        write_answers(runs, [tmp_path / "runs"], tmp_path / "docs")
    small = write_run(tmp_path / "small", 0.115, width=136)
    text = (small / "result.json").read_text().replace("4244000", "471000")
    (small / "result.json").write_text(text)
    between = tmp_path / "runs/640-bp-4-0-1.5-0.9/result.json"
    between.write_text(between.read_text().replace("471000", "1413832"))  # sqrt(471,000 * 4,244,000)
    page = write_answers(
        read_runs([tmp_path / "runs", tmp_path / "small"])[0], [tmp_path / "small"], tmp_path
    )
    flat = " ".join(page.read_text().split())
    assert "of that size, rnn 136, has 11.50, and rnn 440, with 9 times as many, 10.00" in flat
    assert (
        "1.5 points pruning from wider ones recovers at best 67 % (GLP 4x4 of rnn 440), 33 % (BP 4x4" in flat
    )
    assert "Worse than the small dense one hear rnn 440 (BP 4x4), rnn 440 (GLP 4x4), rnn 440 (GL 2" in flat
    assert "hear better than a dense one with as many weights would" in flat
    lines = [re.sub(" *[|] *", "|", line) for line in page.read_text().splitlines()]
    assert "|rnn 640|bp|90.0|1.41|10.95|10.62|-3.1|" in lines  # sqrt(0.115 * 0.098)
    assert "was another one than now" in flat  # the settings of these runs are made up
    only = [run for run in runs if run.sparsifier == "gl"]
    with pytest.raises(UserError, match="no row of the paper's table"):
        write_answers(only, [tmp_path], tmp_path / "docs")


def test_what_pruning_costs_is_set_beside_the_hours_of_speech(tmp_path):
    for hours, dense, pruned in ((1.5, 0.10, 0.15), (0.5, 0.20, 0.22), (4.0, 0.05, 0.10)):
        data = {"hours": hours, "vocabulary": 300, "snr_db": [30.0, 40.0], "seed": 0}
        parts = 3 if hours == 4 else None
        trainer = {"max_epochs": int(12 / hours) * (parts or 1), "max_steps": -1, "max_time": None}
        changes = {"hours": hours, "data": data, "trainer": trainer, "epochs_per_pass": parts}
        for cer, sparsifier in ((dense, "none"), (pruned, "bp")):
            write_run(tmp_path / "runs", cer, sparsifier=sparsifier, **changes)
    for cer, sparsifier in (
        (0.3, "none"),
        (0.4, "bp"),
    ):  # other words: another corpus, not only more or less of it
        other = {"hours": 2.0, "vocabulary": 100, "snr_db": [30.0, 40.0], "seed": 0}
        write_run(tmp_path / "runs", cer, sparsifier=sparsifier, hours=2.0, data=other)
    write_run(tmp_path / "runs", 0.12, width=176)
    runs, _ = read_runs([tmp_path / "runs"])
    page = write_answers(runs, [tmp_path / "runs"], tmp_path / "docs").read_text()
    section = page.partition("## When does pruning cost less?")[2].partition("##")[0]
    assert "costs from 10.0 % to 100.0 %" in " ".join(section.split())
    lines = [line.replace(" ", "").split("|")[1:-1] for line in section.splitlines() if line.startswith("|")]
    assert [(hours, heard, *rest) for hours, heard, _, *rest in lines[2:]] == [
        ("0.5", "24", "20.00", "22.00", "10.0"),
        ("1.5", "8", "10.00", "15.00", "50.0"),
        ("4", "3", "5.00", "10.00", "100.0"),
    ]
    others = re.findall(r"results/(other-\d+.png)", page)
    assert others == ["other-1.png", "other-2.png"]
    write_answers([r for r in runs if r.settings["width"] != 176], [tmp_path / "runs"], tmp_path / "docs")
    assert [path.name for path in (tmp_path / "docs/results").glob("other-*")] == ["other-1.png"]
    assert page.count("## On another corpus") == 2  # that of other words, and the narrow model's


def test_another_corpus_is_held_against_the_paper_where_the_rows_are_there(tmp_path):
    noisy = {"hours": 1.5, "vocabulary": 300, "snr_db": [0.0, 20.0], "seed": 0, "lost": 0.15}
    write_run(tmp_path / "runs", 0.10)
    write_run(tmp_path / "runs", 0.12, width=176)
    write_run(tmp_path / "runs", 0.13, sparsifier="bp", target=0.896)
    for width, sparsifier, target, cer in (
        (440, "none", 0.9, 0.20),
        (640, "none", 0.9, 0.19),
        (440, "bp", 0.896, 0.23),
    ):
        changes = {"width": width, "sparsifier": sparsifier, "target": target, "data": noisy}
        write_run(tmp_path / "runs", cer, hours=2.0, **changes)  # of another name
    folders = [tmp_path / "runs"]
    page = write_answers(read_runs(folders)[0], folders, tmp_path / "docs").read_text()
    section = page.partition("## On another corpus")[2]
    assert "300 words, 0 to 20 dB SNR, 15 % of it lost, 12 epochs" in section
    lines = [re.sub(" *[|] *", "|", line) for line in section.splitlines()]
    assert "|CER of 5 to 25 %|yes: 19.00 to 20.00|" in lines
    assert "|the widest less than 5 % better than the reference|no: rnn 640 5.0 %|" in lines
    [row] = [line.split("|") for line in lines if line.startswith("|RNN Sparse 1760|")]
    assert row[9:13] == ["17.93", "23.00", "-16.7", "-15.0"]
    assert "RNN Dense 704" not in section  # nothing stands for it


def test_recognisers_tested_by_other_transcripts_stand_beside_what_they_were_trained_by(tmp_path):
    wrong = {"hours": 1.5, "vocabulary": 300, "snr_db": [30.0, 40.0], "seed": 0, "typos": 0.1}
    right = wrong | {"typos": None}
    for width, trained, again in ((440, 0.10, 0.02), (176, 0.12, 0.03)):
        run = write_run(tmp_path / "runs", trained, width=width, data=wrong)
        write_run(
            tmp_path / "runs", again, width=width, hours=2.0, data=right, weights=str(run)
        )  # another name
    # Another decoder on the same speech is no other corpus.
    write_run(tmp_path / "runs", 0.09, hours=3.0, data=wrong, weights=str(run), decoder={"beam": 8})
    folders = [tmp_path / "runs"]
    page = write_answers(read_runs(folders)[0], folders, tmp_path / "docs").read_text()
    assert "10 % of the transcripts' letters wrong" in page
    [section] = page.split("## Tested again")[1:]
    assert "with no more training, on mini scale, 1.5 h of synthetic speech, 300 words" in " ".join(
        section.split()
    )
    lines = [re.sub(" *[|] *", "|", line) for line in section.splitlines()]
    assert "|rnn 440|dense|0.0|10.00|2.00|0.0|" in lines
    assert "|rnn 176|dense|0.0|12.00|3.00|-50.0|" in lines
    assert sum(line.startswith("|rnn") for line in lines) == 2
    # What part of the rates is the corpus's stands where the corpus is judged.
    [corpus] = re.findall("## The corpus.*?## The paper's table", page, re.DOTALL)
    assert "the same recognisers have 8.0 to 9.0 points less" in corpus
    lines = [re.sub(" *[|] *", "|", line) for line in corpus.splitlines()]
    assert "|asked of dense models|RNNs|RNNs tested again|" in lines
    assert "|the 704-row at least 15 % worse than the reference|yes: 20.0 %|yes: 50.0 %|" in lines


def test_differences_no_larger_than_those_between_seeds_are_named(tmp_path):
    for seed, cer in ((0, 0.100), (1, 0.104)):
        write_run(tmp_path / "runs", cer, seed=seed)
    for target, bp, glp in ((0.8, 0.110, 0.109), (0.9, 0.120, 0.110)):
        write_run(tmp_path / "runs", bp, sparsifier="bp", target=target)
        write_run(tmp_path / "runs", glp, sparsifier="glp", target=target)
    folders = [tmp_path / "runs"]
    page = write_answers(read_runs(folders)[0], folders, tmp_path / "docs").read_text()
    assert (
        "at 2 of 2 sparsities (80, 90 %); at 80 % the two differ by no more than seeds do (0.28 points"
        in page
    )


@pytest.mark.parametrize(
    ("folders", "docs"),
    [
        (["results/mini", "results/short_gaps", "results/demo"], Path("docs")),
        (["results/noise"], Path("docs/noise")),
    ],
)
def test_the_committed_pages_are_what_the_committed_results_say(folders, docs, tmp_path, monkeypatch):
    monkeypatch.chdir(CONF.parent)
    paths = [Path(folder) for folder in folders]
    page = write_answers(read_runs(paths)[0], paths, tmp_path).read_text()
    assert page.replace(str(tmp_path), str(docs)) == (docs / "RESULTS.md").read_text()
    for picture in re.findall(r"\((results/.*?png)\)", page):
        assert (docs / picture).exists()


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")
def test_the_wandb_workspace_asks_for_what_runs_log():
    described = build_workspace("team/speech")._to_model().model_dump_json()
    for name in ("test/cer", "sparsity/prunable", "parameters/nonzero", "val/cer", "train/loss", "masks"):
        assert name in described
    # Settings as W&B stores them, each under `value`, in the panel of choices and in the table's columns.
    settings = ["model.value.cell", "width.value", "sparsifier.value.name", "block.value", "seed.value"]
    axes = [*(f"config:{name}" for name in settings), "summary:test/cer"]
    assert re.findall(r'"accessor":"(.*?)"', described) == axes
    assert build_workspace("team/speech").runset_settings.pinned_columns[1:6] == axes[:-1]
    for wrong in ("team", "team/", "/speech", "a/b/c"):
        with pytest.raises(UserError, match="must be ENTITY/PROJECT"):
            build_workspace(wrong)
