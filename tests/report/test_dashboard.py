"""dashboard.html in a real browser without a network."""

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright
from report_runs import write_run

from blocksparse_rnn.report.dashboard import write_dashboard
from blocksparse_rnn.report.results import read_runs

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium"),
]
PATIENCE = 60_000  # ms, for a busy machine
expect.set_options(timeout=PATIENCE)
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


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a page as a browser with some settings shows it; what it complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def opened(path: Path, **settings) -> Page:
        context = browser.new_context(offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda m: complaints.extend([m.text] if m.type == "error" else []))
        page.on("pageerror", lambda error: complaints.extend([str(error)]))
        page.on("dialog", lambda _: complaints.extend(["dialog"]))
        page.on("dialog", lambda dialog: dialog.dismiss())
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(opened, page_file):
    return opened(page_file)


def column(page: Page, title: str) -> list[str]:
    titles = [text.split(" ▴")[0].split(" ▾")[0] for text in page.locator("#runs thead th").all_inner_texts()]
    place = titles.index(title) + 1
    return page.locator(f"#runs tbody td:nth-child({place})").all_inner_texts()


def place(page: Page, run: str) -> tuple[float, float]:
    """Where the point of a run is, for the mouse."""
    page.locator("#scatter").scroll_into_view_if_needed()
    names = page.evaluate("document.getElementById('scatter').data.map((trace) => trace.customdata)")
    [(trace, index)] = [(t, i) for t, of in enumerate(names) for i, n in enumerate(of) if n.startswith(run)]
    point = page.locator("#scatter .scatterlayer .trace").nth(trace).locator(".point").nth(index)
    box = point.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def picked(page: Page) -> Locator:
    return page.locator("#runs tr.picked td:last-child")


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] + 5, start[1] + 5)
    page.mouse.move(*end, steps=5)
    page.mouse.up()


def contrast(one: str, other: str) -> float:
    """Of two colours, rgb(r, g, b), by WCAG."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_table_sorts_by_any_column(page):
    assert column(page, "CER %") == ["4.00", "5.00", "8.00", "10.00"]
    page.get_by_role("button", name="CER %").click()
    assert column(page, "CER %") == ["10.00", "8.00", "5.00", "4.00"]
    page.get_by_role("button", name="model").click()
    assert column(page, "model") == ["rnn 176", "rnn 440", "rnn 440", "rnn 440"]


def test_search_and_filters_narrow_table_and_plot(page):
    page.locator("#search").fill("440 DENSE")
    assert column(page, "CER %") == ["4.00", "5.00"]
    expect(page.locator("#scatter .scatterlayer .trace")).to_have_count(1)
    expect(page.locator("#scatter .point")).to_have_count(2)
    page.locator("#search").fill("")
    page.locator("#algorithm").select_option("bp")
    assert column(page, "block") == ["4x4"]
    assert "1 of 4 runs shown" in page.locator("#summary").inner_text()


def test_selected_runs_are_overlaid_and_thinned(page):
    page.locator("#runs tbody tr").nth(0).click()
    page.locator("#runs tbody tr").nth(2).click()
    traces = page.evaluate("document.getElementById('curves').data.map((trace) => trace.x.length)")
    assert traces == [200, 200]
    expect(page.locator("#curves .scatterlayer .js-line")).to_have_count(2)
    page.get_by_role("button", name="select none").click()
    expect(page.locator("#curves .scatterlayer .js-line")).to_have_count(0)


def test_what_is_no_number_is_a_gap(page):
    page.locator("#metric").select_option("sparsity/prunable")
    page.locator("#runs tbody tr").nth(0).click()
    assert page.evaluate("document.getElementById('curves').data[0].y") == [None, 50]


def test_the_mouse_over_a_point_tells_its_run(page):
    tip = page.locator("#scatter .hovertext")
    page.mouse.move(*place(page, "440-glp"))
    expect(tip).to_contain_text("440-glp-8x2-0")
    expect(tip).to_contain_text("90.00, 8.00")
    page.mouse.move(*place(page, "440-none-4-0"))
    expect(tip).to_contain_text("440-none-4-0")


def test_a_click_on_a_point_selects_its_run_and_another_leaves_it(page):
    page.mouse.click(*place(page, "176-bp"))
    expect(picked(page)).to_have_text([re.compile("^176-bp")])
    expect(page.locator("#curves .legendtext")).to_contain_text("176-bp")
    page.mouse.move(0, 0)
    page.wait_for_timeout(400)  # else it would be a double click
    page.mouse.click(*place(page, "176-bp"))
    expect(picked(page)).to_have_count(0)


def test_a_drag_selects_the_points_inside(page):
    (left, top), (right, bottom) = place(page, "176-bp"), place(page, "440-glp")
    drag(page, (left - 30, top - 15), (right + 15, bottom + 15))
    expect(picked(page)).to_have_text([re.compile("^440-glp"), re.compile("^176-bp")])


def test_the_keyboard_sorts_and_selects(page):
    page.get_by_role("button", name="block").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert column(page, "CER %") == ["10.00", "8.00", "5.00", "4.00"]
    expect(page.get_by_role("button", name="CER %")).to_be_focused()
    page.get_by_role("button", name="run", exact=True).focus()
    page.keyboard.press("Tab")
    expect(page.locator("#runs tbody tr").nth(0)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#runs tr.picked td:nth-child(5)")).to_have_text(["8.00", "5.00"])
    page.keyboard.press("Tab")  # one stop for all rows
    expect(page.locator("#x")).to_be_focused()


def test_runs_on_other_data_stand_apart(opened, tmp_path):
    for seed in range(3):
        write_run(tmp_path / "runs", 0.1, seed=seed)
    write_run(tmp_path / "runs", 0.01, hours=12)
    write_dashboard(read_runs([tmp_path / "runs"])[0], tmp_path / "dashboard.html")
    page = opened(tmp_path / "dashboard.html")
    note = page.get_by_text("compare error rates only where data is the same")
    assert column(page, "CER %") == ["10.00"] * 3
    expect(page.locator("#scatter .point")).to_have_count(3)
    expect(note).to_be_hidden()
    page.locator("#group").select_option(label="all")
    assert column(page, "data") == ["12 h of synthetic speech"] + ["1.5 h of synthetic speech"] * 3
    expect(note).to_be_visible()


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
    page.wait_for_function("document.getElementById('masks').naturalWidth === 1")
    dense = next(n for n in page.locator("#masked option").all_inner_texts() if "none" in n)
    page.locator("#masked").select_option(dense)
    assert page.locator("#masks").is_hidden()
    assert "no masks" in page.locator("#masks-note").inner_text()


def test_models_look_different_and_stand_out_in_light_and_dark(opened, tmp_path):
    for width in range(1, 21):
        write_run(tmp_path / "runs", 0.1, width=width)
    write_dashboard(read_runs([tmp_path / "runs"])[0], tmp_path / "dashboard.html")
    for scheme in ("light", "dark"):
        page = opened(tmp_path / "dashboard.html", color_scheme=scheme)
        marks = page.evaluate(
            "document.getElementById('scatter').data.map(({marker}) => [marker.color, marker.symbol[0]])"
        )
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert min(contrast(colour, back) for colour, _ in marks) > 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_dark_where_the_system_is_until_the_button_says_otherwise(opened, page_file, scheme):
    page = opened(page_file, color_scheme=scheme)
    colours = "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
    back, text = page.evaluate(colours)
    assert contrast(back, "rgb(0, 0, 0)" if scheme == "dark" else "rgb(255, 255, 255)") < 1.5
    assert contrast(back, text) > 7
    page.get_by_role("button", name="dark / light").click()
    assert page.evaluate(colours)[0] != back
    page.get_by_role("button", name="dark / light").click()
    assert page.evaluate(colours) == [back, text]


def test_it_fits_a_phone_and_its_fingers(opened, page_file):
    page = opened(page_file, viewport={"width": 390, "height": 844}, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.touchscreen.tap(*place(page, "440-glp"))
    expect(picked(page)).to_have_text([re.compile("^440-glp")])
    page.set_viewport_size({"width": 700, "height": 390})
    page.wait_for_function("document.querySelector('#scatter .main-svg').getBoundingClientRect().width > 390")
