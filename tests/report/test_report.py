"""Rows, tables, plots and files of a report: figures worked by hand."""

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from matplotlib import image
from report_runs import rows, write_run

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import CONF
from blocksparse_rnn.report.dashboard import write_dashboard
from blocksparse_rnn.report.plots import of_several_blocks, pareto_front
from blocksparse_rnn.report.results import Run, keep_runs, read_curves, read_runs, rows_of
from blocksparse_rnn.report.table import as_csv, as_latex, as_markdown, as_text, run_tables
from blocksparse_rnn.report.workspace import build_workspace

REPORT = CONF.parent / "src" / "report.py"


def test_perf_is_against_the_reference_width_and_against_the_same_width(tmp_path):
    write_run(tmp_path, 0.040)
    write_run(tmp_path, 0.060, width=176)
    write_run(tmp_path, 0.150, width=176, sparsifier="bp")
    write_run(tmp_path, 0.050, width=640, sparsifier="glp", block="8x2")
    narrow, pruned, dense, wide = rows(tmp_path)
    assert dense.perf == dense.perf_same_width == 0
    assert narrow.perf == pytest.approx((0.04 - 0.06) / 0.04)
    assert pruned.perf == pytest.approx((0.04 - 0.15) / 0.04)
    assert pruned.perf_same_width == pytest.approx((0.06 - 0.15) / 0.06)
    assert wide.perf == pytest.approx(-0.25)
    assert wide.perf_same_width is None
    assert (wide.block, pruned.block, dense.block) == ("8x2", "4x4", "")


def test_a_dense_run_of_another_architecture_is_no_reference(tmp_path):
    for layers, cer in ((3, 0.1), (5, 0.2)):
        model = {"cell": "rnn", "layers": layers, "hidden_size": 440}
        folder = tmp_path / f"{layers} layers"
        write_run(folder, cer, model=model)
        write_run(folder, 2 * cer, sparsifier="bp", model=model)
        write_run(folder, 3 * cer, width=176, model=model | {"hidden_size": 176})
    shown = rows(tmp_path)
    assert sorted(row.perf for row in shown) == pytest.approx([-2, -2, -1, -1, 0, 0])
    assert [row.perf_same_width for row in shown] == pytest.approx([0, 0, 0, 0, -1, -1])


def test_seeds_are_one_row_with_mean_and_deviation_and_perf_over_the_seeds_that_both_have(tmp_path):
    for seed, cer in enumerate((0.04, 0.05, 0.06)):
        write_run(tmp_path, cer, seed=seed)
    for seed, cer in ((0, 0.10), (2, 0.20), (3, 0.30)):
        write_run(tmp_path, cer, sparsifier="bp", seed=seed)
    write_run(tmp_path, 0.15, sparsifier="bp", block=8, seed=7)
    dense, pruned, other = rows(tmp_path)
    assert (dense.seeds, pruned.seeds) == ((0, 1, 2), (0, 2, 3))
    assert dense.cer == pytest.approx(0.05)
    assert dense.cer_deviation == pytest.approx(0.01)
    assert pruned.cer == pytest.approx(0.2)
    assert pruned.perf_same_width == pytest.approx((0.05 - 0.15) / 0.05)  # of seeds 0 and 2
    assert other.perf_same_width == pytest.approx(-2.0)  # no seed in common: against all of them


def test_only_a_dense_run_of_the_same_recipe_is_the_reference(tmp_path):
    one, other = {"optimizer": {"lr": 0.1}}, {"optimizer": {"lr": 0.2}}
    beam = {"decoder": {"beam": 50}, "weights": "outputs/x"}
    for name, cer, recipe in (("a", 0.04, one), ("b", 0.08, other), ("c", 0.02, one | beam)):
        write_run(tmp_path / name, cer, **recipe)
        write_run(tmp_path / name, 2 * cer, sparsifier="bp", prunable={"recurrent": []}, **recipe)
        write_run(tmp_path / name, 3 * cer, width=640, sparsifier="bp", **recipe)
    shown = rows(tmp_path)
    assert sorted(row.perf for row in shown) == pytest.approx([-2] * 3 + [-1] * 3 + [0] * 3)
    assert [row.perf_same_width for row in shown if row.sparsifier == "bp" and row.width == 440] == [-1] * 3
    assert sum(row.reevaluated for row in shown) == 3


def test_reevaluated_runs_are_held_against_those_trained_by_their_own_recipe(tmp_path):
    """Trained by two recipes, then evaluated alike; seeds of one recipe are one row."""
    for trained, cer in (("one", 0.1), ("other", 0.2)):
        for seed in (0, 1):
            for sparsifier, factor in (("none", 1), ("bp", 2)):
                choices = {"sparsifier": sparsifier, "seed": seed, "weights": f"outputs/{trained}-{seed}"}
                write_run(tmp_path / trained, factor * cer, **choices, result={"trained": trained})
    shown = rows(tmp_path)
    assert [row.seeds for row in shown] == [(0, 1)] * 4
    assert [row.perf_same_width for row in shown] == pytest.approx([0, 0, -1, -1])


def test_runs_on_other_data_are_not_compared(tmp_path):
    write_run(tmp_path, 0.04)
    write_run(tmp_path, 0.10, sparsifier="bp", hours=3.0)
    shown = rows(tmp_path)
    assert [row.perf for row in shown] == [0, None]
    text = as_text(run_tables(shown))
    assert "mini scale, 1.5 h of synthetic speech, 300 words, 30 to 40 dB SNR, 12 epochs" in text
    assert "mini scale, 3 h of synthetic speech" in text


USUAL = {"hours": 1.5, "vocabulary": 300, "snr_db": [30.0, 40.0], "seed": 0}
SPEECH = "1.5 h of synthetic speech, 300 words, 30 to 40 dB SNR"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (USUAL, SPEECH),
        (USUAL | {"voices": 24, "workers": 2}, SPEECH),  # as in conf/data/synth.yaml
        (USUAL | {"voices": 12, "accents": ["en-us"]}, f"{SPEECH}, accents=[en-us], voices=12"),
        (
            USUAL | {"typos": 0.1, "held_out": 0.3},
            f"{SPEECH}, label noise in 10 % of the letters, dev and test each 30 % as long",
        ),
        ({"train": "a.jsonl", "test": "b.jsonl"}, "a.jsonl, tested on b.jsonl"),
        ({"train": "a.jsonl", "test": "c.jsonl"}, "a.jsonl, tested on c.jsonl"),
    ],
)
def test_data_that_differ_have_different_names(tmp_path, data, name):
    write_run(tmp_path, 0.1, data=data)
    assert [row.group for row in rows(tmp_path)] == [f"mini scale, {name}, 12 epochs"]


@pytest.mark.parametrize(
    ("schedule", "named"),
    [
        ({"name": "cubic", "_target_": "somewhere.Else"}, "cubic"),
        ({"_target_": "blocksparse_rnn.schedule.CubicSchedule"}, "cubic"),  # of an older version
        ({"_target_": "blocksparse_rnn.schedule.PaperSchedule"}, "paper"),
    ],
)
def test_a_schedule_is_called_by_its_option(tmp_path, schedule, named):
    settings = {"sparsifier": {"name": "bp", "block_pruning": {"schedule": schedule}}}
    assert Run(tmp_path, settings, {}).schedule == named


def test_rows_with_the_same_choices_are_told_apart_by_name(tmp_path):
    for alpha in (0.5, 1.0):
        changes = {"decoder": {"alpha": alpha}, "weights": "outputs/x", "result": {"dev_cer": alpha / 10}}
        path = write_run(tmp_path / str(alpha), 0.1, **changes)
        path.rename(path.with_name(f"again-{alpha}"))
    [table] = run_tables(rows(tmp_path))
    assert table.headings[-2:] == ("dev CER %", "run")
    assert [line[-2:] for line in table.cells] == [("5.00", "again-0.5"), ("10.00", "again-1.0")]


def test_the_markdown_of_a_small_table(tmp_path):
    write_run(tmp_path, 0.04)
    write_run(tmp_path, 0.05, sparsifier="bp")
    lines = [re.sub(" *[|] *", "|", line) for line in as_markdown(run_tables(rows(tmp_path))).splitlines()]
    assert lines[2:3] + lines[4:] == [
        "|model|sparsifier|block|seeds|CER %|WER %|sparsity %|prunable sparsity %|nonzero|PERF %|PERF same width %|",
        "|rnn 440|dense|-|0|4.00|12.0|0.0|0.0|4.244 M|0.0|0.0|",
        "|rnn 440|bp|4x4|0|5.00|15.0|85.0|90.0|0.471 M|-25.0|-25.0|",
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


def test_a_kept_run_counts_once_beside_its_original(tmp_path):
    write_run(tmp_path, 0.04)
    runs, _ = read_runs([tmp_path])
    assert keep_runs(runs, tmp_path / "kept") == 1
    runs, others = read_runs([tmp_path])
    assert [row.seeds for row in rows_of(runs)] == [(0,)]
    assert "counted once" in others[0]


def test_two_runs_of_one_name_are_not_merged(tmp_path):
    for folder, seed in (("a", 0), ("b", 1)):
        write_run(tmp_path / folder, 0.04, seed=seed).rename(tmp_path / folder / "run")
    with pytest.raises(UserError, match="have the same name"):
        keep_runs(read_runs([tmp_path])[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_kept_run_has_no_absolute_paths(tmp_path):
    outputs, corpora = tmp_path / "outputs", str(tmp_path / "corpora")
    manifests = dict.fromkeys(("train", "test"), "a.jsonl")
    folders = {"outputs": str(outputs), "corpora": corpora, "data": manifests | {"folder": corpora}}
    source = write_run(outputs, 0.04, **folders)
    keep_runs(read_runs([outputs])[0], tmp_path / "kept")
    kept, expected = (
        yaml.safe_load((path / "config.yaml").read_text())
        for path in (tmp_path / "kept" / source.name, source)
    )
    names = {"outputs": "outputs", "corpora": "corpora", "data": manifests | {"folder": "corpora"}}
    assert kept == expected | names


def write_metrics(run: Path, lines: str) -> None:
    (run / "metrics.csv").write_text(f"step,epoch,metric,value,seconds\n{lines}")


def test_curves_leave_out_lines_that_a_crash_cut_off(tmp_path):
    cut = "1,0,a,0.5,1.0\n2,0,a,0.2\n3,0,a,0.4,3,0,a,0.3,4.0\n4,0,a,nan,5.0\n5,0,"
    write_metrics(write_run(tmp_path, 0.04), cut)
    [run], _ = read_runs([tmp_path])
    steps, values = read_curves(run)["a"]
    assert steps == [1, 3, 4]
    assert values[:2] == [0.5, 0.4]


def test_the_dashboard_holds_no_numbers_that_json_lacks(tmp_path):
    write_metrics(
        write_run(tmp_path, 0.04), "1,0,val/loss,nan,1.0\n2,0,val/loss,0.5,1.0\n3,0,val/loss,inf,1.0\n"
    )
    write_dashboard(read_runs([tmp_path])[0], tmp_path / "page.html")
    assert '"val/loss":[[1,2,3],[null,0.5,null]]' in (tmp_path / "page.html").read_text()


def test_the_pareto_front_holds_points_that_no_other_beats_in_both():
    points = [(0.8, 0.05), (0.9, 0.06), (0.9, 0.07), (0.85, 0.065), (0.95, 0.10), (0.7, 0.051)]
    assert pareto_front(points) == [(0.8, 0.05), (0.9, 0.06), (0.95, 0.10)]


def test_the_plot_of_blocks_holds_rows_that_differ_in_nothing_else(tmp_path):
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


def test_the_program_writes_tables_plots_and_a_dashboard(tmp_path):
    for width in (176, 440):
        write_run(tmp_path / "runs", 0.04, width=width)
        for block in (4, 16):
            write_run(tmp_path / "runs", 0.1, width=width, sparsifier="bp", block=block)
    command = [sys.executable, str(REPORT), str(tmp_path / "runs"), "--out"]

    def report(out: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, str(out)], capture_output=True, text=True, timeout=300)

    done = report(tmp_path / "report")
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
    done = report(tmp_path / "file")
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write")


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
