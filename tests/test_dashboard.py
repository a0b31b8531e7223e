"""The page to explore, in a real browser that has no network."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright
from test_report import write_run

from blocksparse_rnn.report.dashboard import write_dashboard
from blocksparse_rnn.report.results import read_runs

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium"),
]
EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def page_file(tmp_path):
    for seed, cer in enumerate((0.050, 0.040)):
        write_run(tmp_path / "runs", cer, seed=seed, sweep="one")
    write_run(tmp_path / "runs", 0.100, width=176, sparsifier="bp")
    pruned = write_run(
        tmp_path / "runs", 0.080, sparsifier="glp", block="8x2", optimizer={"lr": 0.2, "odd": EVIL}
    )
    (pruned / "masks.png").write_bytes((Path(__file__).parent / "pixel.png").read_bytes())
    header = "step,epoch,metric,value,seconds\n"
    for path in (tmp_path / "runs").iterdir():
        lines = [f"{step},0,val/cer,{1 / step},1.0\n" for step in range(1, 1001)]
        lines += ["1,0,sparsity/prunable,nan,1.0\n", "2,0,sparsity/prunable,0.5,1.0\n"]
        (path / "metrics.csv").write_text(header + "".join(lines))
    write_dashboard(read_runs([tmp_path / "runs"])[0], tmp_path / "dashboard.html")
    return tmp_path / "dashboard.html"


@pytest.fixture
def page(page_file):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        context = browser.new_context(offline=True)
        page = context.new_page()
        complaints: list[str] = []
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
        page.goto(page_file.as_uri())
        yield page
        assert complaints == []
        browser.close()


def column(page: Page, title: str) -> list[str]:
    titles = [text.split(" ▴")[0].split(" ▾")[0] for text in page.locator("#runs thead th").all_inner_texts()]
    place = titles.index(title) + 1
    return page.locator(f"#runs tbody td:nth-child({place})").all_inner_texts()


def traces(page: Page, plot: str) -> list[dict]:
    return page.evaluate(f"document.getElementById('{plot}').data.map(t => ({{name: t.name, x: [...t.x]}}))")


def test_the_table_sorts_by_any_column(page):
    assert column(page, "CER %") == ["4.00", "5.00", "8.00", "10.00"]
    page.get_by_role("button", name="CER %").click()
    assert column(page, "CER %") == ["10.00", "8.00", "5.00", "4.00"]
    page.get_by_role("button", name="model").click()
    assert column(page, "model") == ["rnn 176", "rnn 440", "rnn 440", "rnn 440"]


def test_search_and_filters_narrow_table_and_plot(page):
    page.locator("#search").fill("440 DENSE")
    assert column(page, "CER %") == ["4.00", "5.00"]
    assert [t["name"] for t in traces(page, "scatter")] == ["rnn 440"]
    page.locator("#search").fill("")
    page.locator("#algorithm").select_option("bp")
    assert column(page, "block") == ["4x4"]
    assert "1 of 4 runs shown" in page.locator("#summary").inner_text()


def test_selected_runs_are_overlaid_and_thinned(page):
    page.locator("#runs tbody tr").nth(0).click()
    page.locator("#runs tbody tr").nth(2).click()
    drawn = traces(page, "curves")
    assert len(drawn) == 2
    assert all(len(t["x"]) == 200 and t["x"][0] == 1 and t["x"][-1] == 1000 for t in drawn)
    page.get_by_role("button", name="select none").click()
    assert traces(page, "curves") == []


def test_what_is_no_number_is_a_gap(page):
    page.locator("#metric").select_option("sparsity/prunable")
    page.locator("#runs tbody tr").nth(0).click()
    assert page.evaluate("[...document.getElementById('curves').data[0].y]") == [None, 50]


def test_a_click_on_a_point_selects_its_run(page):
    page.evaluate(
        "document.getElementById('scatter').emit('plotly_click',"
        " {points: [{customdata: document.getElementById('scatter').data[0].customdata[0]}]})"
    )
    assert page.locator("#runs tr.picked").count() == 1


def test_rows_are_selected_and_left_by_keyboard(page):
    page.locator("#runs tbody tr").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#runs tr.picked td:nth-child(5)").all_inner_texts() == ["5.00", "8.00"]


def test_settings_of_two_runs_stand_side_by_side(page):
    names = page.locator("#one option").all_inner_texts()
    pruned, dense = (next(n for n in names if word in n) for word in ("glp", "440-none-4-0"))
    page.locator("#one").select_option(dense)
    page.locator("#other").select_option(pruned)
    told = {
        cells[0]: cells[1:]
        for row in page.locator("#settings tbody tr.differs").all()
        for cells in [row.locator("th, td").all_inner_texts()]
    }
    assert told["optimizer.lr"] == ["0.1", "0.2"]
    assert told["optimizer.odd"] == ["—", f'"{EVIL}"']
    assert "width" not in told
    page.locator("#differences").uncheck()
    assert page.locator("#settings tbody tr:not(.differs) th:text-is('width')").count() == 1


def test_masks_are_shown_where_there_are_any(page):
    assert page.locator("#masks").get_attribute("src").startswith("data:image/png;base64,")
    dense = next(n for n in page.locator("#masked option").all_inner_texts() if "none" in n)
    page.locator("#masked").select_option(dense)
    assert page.locator("#masks").is_hidden()
    assert "no masks" in page.locator("#masks-note").inner_text()


def test_it_fits_a_phone_and_the_dark(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=5000)
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="dark / light").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
