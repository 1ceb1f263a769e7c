"""The report in a real browser. Skipped where there is no Chromium: `apt-get install chromium chromium-driver`."""

import base64
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from orchestrator.journal.folder import open_run
from orchestrator.journal.record import Record
from orchestrator.report import render
from orchestrator.report.document import Document, Folded, Paragraph, Section, Table, Verbatim
from orchestrator.report.html import to_html
from tests.orchestrator.fake_run import MiB, demo_attempts, demo_spec

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
_CHROMIUM, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if _CHROMIUM is None or _DRIVER is None:
    pytest.skip("no Chromium here: apt-get install chromium chromium-driver", allow_module_level=True)

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

_HOSTILE = "<img src=x onerror=alert(1)>'\"</script><script>alert(2)</script>"
_SCREEN = 900  # a screen's height, in CSS pixels

#: Every text whose contrast to what is painted behind it is below 4.5 : 1, with the ratio.
_FAINT = """
const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const parse = (text) => {
  const numbers = (text.replace("srgb", "").match(/[\\d.]+/g) || []).map(Number);
  return text.startsWith("color(") ? numbers.map((v, i) => i < 3 ? v * 255 : v) : numbers;
};
const found = [];
for (const element of document.querySelectorAll("main *, .tip")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || element.closest("style, script") || element.checkVisibility && !element.checkVisibility({opacityProperty: true})) continue;
  const style = getComputedStyle(element);
  const ink = parse(element.closest("svg") ? style.fill : style.color);
  if (element.closest("svg") && style.stroke !== "none") continue;  // the margin of paper around a name
  let behind = element;
  let paper = [0, 0, 0, 0];
  while (behind && (paper.length === 4 && paper[3] === 0)) { paper = parse(getComputedStyle(behind).backgroundColor); behind = behind.parentElement; }
  const [a, b] = [luminance(ink), luminance(paper)];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) found.push(`${element.tagName} ${element.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
}
return [...new Set(found)];
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Only the driver on this machine is spoken to.
    os.environ.setdefault("NO_PROXY", "localhost,127.0.0.1")
    driver = webdriver.Chrome(options=options, service=Service(_DRIVER))
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = demo_spec(lengths=[500, 1000, 4000, 8000], repeats=3, budgets=[64 * MiB, 48 * MiB])
    out = tmp_path_factory.mktemp("run")
    attempts = demo_attempts(spec)
    with open_run(out, spec) as run:
        run.plan(len(attempts))
        run.journal.append([Record(run.run_id, attempt) for attempt in attempts])
        run.finish("finished")
    render(out)
    return out


@pytest.fixture(scope="module")
def frontier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose only pictures at first sight are those of boundaries."""
    spec = demo_spec(
        modes=["baseline", "streaming"], lengths=[500, 2000], budgets=[48 * MiB, 64 * MiB], batch_sizes=[1, 4]
    )
    out = tmp_path_factory.mktemp("frontier")
    with open_run(out, spec) as run:
        run.journal.append([Record(run.run_id, attempt) for attempt in demo_attempts(spec)])
    render(out)
    return out


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    """The report, 1400 pixels wide. No test may leave an error or a refusal of the policy in the console."""
    _resize(browser, 1400)
    browser.get("about:blank")  # else a link within the page that was open before would not load it again
    browser.get((folder / "report.html").as_uri())
    yield browser
    assert browser.get_log("browser") == []


def _await(browser: Any, condition: Callable[[], bool]) -> None:
    """A link is followed after the key that chose it has been answered."""
    WebDriverWait(browser, 20).until(lambda _: condition())


def _resize(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": _SCREEN, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def _media(browser: Any, media: str = "", scheme: str = "light") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def test_a_point_tells_its_value_to_pointer_and_keyboard(page: Any) -> None:
    figure = page.find_element(By.CSS_SELECTOR, "#the-answer figure")
    mark = figure.find_elements(By.CSS_SELECTOR, "[aria-roledescription='point']")[-1]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    tip = page.find_element(By.CSS_SELECTOR, ".tip")

    def is_told() -> bool:
        """A page that is still laid out moves the mark from under a pointer that stands still."""
        ActionChains(page).move_to_element(figure).move_to_element(mark).perform()
        return bool(tip.text == mark.get_attribute("aria-label"))

    _await(page, is_told)
    assert "memory (MiB) at 8,000 new tokens" in tip.text
    ActionChains(page).move_to_element(page.find_element(By.TAG_NAME, "h1")).perform()
    _await(page, lambda: not tip.is_displayed())
    figure.send_keys(Keys.ARROW_RIGHT)
    _await(page, tip.is_displayed)
    first = tip.text
    figure.send_keys(Keys.ARROW_RIGHT)
    _await(page, lambda: tip.text not in ("", first))
    figure.send_keys(Keys.ESCAPE)
    _await(page, lambda: not tip.is_displayed())


def test_pictures_of_boundaries_tell_values_at_every_width_and_scheme(browser: Any, frontier: Path) -> None:
    browser.get((frontier / "report.html").as_uri())
    tip = browser.find_element(By.CSS_SELECTOR, ".tip")
    figures = browser.find_elements(By.CSS_SELECTOR, "#where-memory-ends figure")
    told = ("predicted 2,5[0-9]* new tokens at 48 MiB", "new tokens of each sequence at 4 sequences")
    try:
        for width, scheme in ((1400, "light"), (390, "dark")):
            _resize(browser, width)
            _media(browser, scheme=scheme)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert browser.execute_script(_FAINT) == []
            for figure, words in zip(figures, told, strict=True):
                browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
                marks = figure.find_elements(By.CSS_SELECTOR, "[aria-roledescription='point']")
                mark = next(m for m in marks if re.search(words, m.get_attribute("aria-label") or ""))
                figure.send_keys(Keys.ARROW_RIGHT)
                _await(browser, tip.is_displayed)
                seen = {tip.text}
                for _ in marks:
                    figure.send_keys(Keys.ARROW_RIGHT)
                    seen.add(tip.text)
                assert mark.get_attribute("aria-label") in seen
    finally:
        _media(browser)
    assert browser.get_log("browser") == []


def test_a_heading_sorts_within_groups_by_value(page: Any) -> None:
    table = page.find_elements(By.CSS_SELECTOR, "#every-mode-at-every-length table")[0]
    button = next(b for b in table.find_elements(By.CSS_SELECTOR, "th button") if b.text == "tok/s")

    def speeds() -> list[float | None]:
        body = table.find_elements(By.TAG_NAME, "tbody")[1]
        rows = body.find_elements(By.CSS_SELECTOR, "tr:not(.group)")
        texts = [row.find_elements(By.TAG_NAME, "td")[2].text for row in rows]
        return [None if text == "–" else float(text) for text in texts]

    button.send_keys(Keys.ENTER)
    known = [speed for speed in speeds() if speed is not None]
    assert known == sorted(known)
    assert len(known) > 1
    button.click()
    told = speeds()
    known = [speed for speed in told if speed is not None]
    assert known == sorted(known, reverse=True)
    assert None not in told[: len(known)]
    header = button.find_element(By.XPATH, "..")
    assert header.get_attribute("aria-sort") == "descending"
    assert table.find_elements(By.CSS_SELECTOR, "tbody")[1].text.startswith("1,000 tokens")


def test_a_filter_leaves_rows_with_all_its_words(page: Any) -> None:
    section = page.find_element(By.ID, "where-memory-ends")
    section.find_element(By.CSS_SELECTOR, "input").send_keys("SPEC 8,000")
    shown = [row.text for row in section.find_elements(By.CSS_SELECTOR, "tbody tr") if row.is_displayed()]
    assert [row.split()[0] for row in shown] == ["pocket", "streaming+spec"] * 2


def test_a_row_leads_to_its_evidence_and_back(page: Any) -> None:
    link = page.find_element(By.CSS_SELECTOR, "#what-did-not-end-ok td a")
    case = page.find_element(By.CSS_SELECTOR, link.get_attribute("hash"))
    assert not case.get_property("open")
    link.send_keys(Keys.ENTER)
    _await(page, lambda: case.get_property("open"))
    back = case.find_element(By.CSS_SELECTOR, ".back a")
    back.click()
    row = page.find_element(By.CSS_SELECTOR, back.get_attribute("hash"))
    assert row.find_element(By.TAG_NAME, "a") == link
    _await(page, lambda: 0 <= row.rect["y"] - page.execute_script("return scrollY") < _SCREEN)


def test_the_contents_lead_to_every_section(page: Any) -> None:
    links = page.find_elements(By.CSS_SELECTOR, "nav a")
    sections = [section.get_attribute("id") for section in page.find_elements(By.TAG_NAME, "section")]
    assert [link.get_attribute("hash") for link in links] == [f"#{name}" for name in sections]
    links[-1].click()
    _await(page, lambda: page.execute_script("return scrollY") > _SCREEN)


@pytest.mark.parametrize("width", [1400, 800, 390])
def test_no_width_cuts_anything_off(page: Any, width: int) -> None:
    """What is wider than the page scrolls in its own box. Labels of pictures stay readable."""
    _resize(page, width)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    smallest = page.execute_script(
        "return Math.min(...[...document.querySelectorAll('figure text')].filter((text) => text.checkVisibility()).map((text) => text.getBoundingClientRect().height))"
    )
    assert smallest > 9
    bracket = page.find_element(By.CSS_SELECTOR, "#where-memory-ends tbody tr:not(.group) td:nth-child(2)")
    assert bracket.rect["x"] + bracket.rect["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(page: Any, scheme: str) -> None:
    _media(page, scheme=scheme)
    page.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = true;")
    try:
        assert page.execute_script(_FAINT) == []
    finally:
        _media(page)


def test_paper_shows_all_and_no_control(page: Any) -> None:
    _media(page, "print")
    _resize(page, 1045)  # A4 landscape within its margins
    try:
        cut = page.execute_script(
            "return [...document.querySelectorAll('.scroll, pre')].filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.textContent.slice(0, 60))"
        )
        controls = [e for e in page.find_elements(By.CSS_SELECTOR, "nav, input, .anchor") if e.is_displayed()]
        hidden = page.execute_script(
            "return [...document.querySelectorAll('details > :not(summary, .back)')].filter((part) => part.getBoundingClientRect().height === 0).length"
        )
    finally:
        _media(page)
    assert (cut, controls, hidden) == ([], [], 0)
    printed = page.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]
    assert base64.b64decode(printed).startswith(b"%PDF")


def test_hostile_names_run_nothing(browser: Any, tmp_path: Path) -> None:
    section = Section(
        _HOSTILE,
        [
            Paragraph([_HOSTILE]),
            Table([_HOSTILE, "n"], [[_HOSTILE, "2"], [_HOSTILE, "1"]], _HOSTILE, evidence=["case-1", ""]),
            Folded(_HOSTILE, [Verbatim(_HOSTILE)], "case-1"),
        ],
    )
    html = to_html(Document(_HOSTILE, _HOSTILE, [section] * 3, [_HOSTILE]))
    (tmp_path / "page.html").write_text(html)
    browser.get((tmp_path / "page.html").as_uri())
    browser.find_elements(By.CSS_SELECTOR, "th button")[1].click()
    assert browser.find_element(By.TAG_NAME, "h1").text.startswith("<img src=x")
    assert browser.execute_script("return document.querySelectorAll('main img, main script').length") == 0
    assert browser.get_log("browser") == []
    # A script that is not the report's own is refused.
    (tmp_path / "page.html").write_text(
        html.replace("</main>", "</main><script>document.title='mine'</script>")
    )
    browser.get((tmp_path / "page.html").as_uri())
    assert browser.title != "mine"
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_the_markdown_is_read_in_four_screens(browser: Any, folder: Path, tmp_path: Path) -> None:
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render((folder / "report.md").read_text())
    style = "body{width:860px;font:16px/1.5 sans-serif} td,th{padding:6px 13px} p,table,ul,details{margin:0 0 16px} img{max-width:100%}"
    body = body.replace('src="plots/', f'src="{folder.as_uri()}/plots/')
    (tmp_path / "page.html").write_text(f"<meta charset=utf-8><style>{style}</style>{body}")
    _resize(browser, 1000)
    browser.get((tmp_path / "page.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollHeight") <= 4 * _SCREEN
