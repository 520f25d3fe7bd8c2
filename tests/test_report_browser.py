"""The pages in a real browser, Debian's chromium without a screen."""

# ruff: noqa: F811 - fixtures are imported, and are parameters too

import base64
import io
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import undoor
from conftest import QUICKLY, make_dataset, plant
from helpers.result_pages import KINDS, cases  # noqa: F401 - a fixture
from undoor.defenses.training_set import ClusterImpurity
from undoor.filters import Average
from undoor.findings.maps import with_report_columns
from undoor.report.findings import render_findings, write_findings

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")

VICTIMS, VICTIM = Path(__file__).parents[1] / "results" / "paper" / "victims", "multiple-source-0.25-s0"
NAMES = ("<script>alert(1)</script>", "class'1\"", "Möwe", "鳥")
PAPER = {"light": (255, 255, 255), "dark": (22, 24, 28), "print": (255, 255, 255)}
FLAGGED = {"light": (213, 94, 0), "dark": (255, 138, 60), "print": (213, 94, 0)}


def open_browser(downloads):
    browser, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if browser is None or driver is None:
        pytest.skip("chromium or its chromedriver is not installed (apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of findings with hostile names, open in a browser."""
    folder = tmp_path_factory.mktemp("report")
    planted = plant()
    n = len(planted.evidence.labels)
    ids = np.array([f'{k}/it\'s "{k}" & <b>é</b>.png' for k in range(n)])
    evidence = undoor.Evidence(
        planted.evidence.plain,
        {str(Average()): planted.evidence.filtered["planted"]},
        planted.evidence.labels,
        ids,
        NAMES,
    )
    findings = ClusterImpurity(**QUICKLY)(evidence).against(planted.poisoned)
    findings = with_report_columns(findings, evidence, str(Average()))
    images = np.resize(make_dataset(channels=3).images, (n, 3, 12, 12))
    html = render_findings(findings, undoor.Dataset(images, evidence.labels, NAMES, ids), Average())
    (folder / "report.html").write_text(html, encoding="utf-8")
    browser = open_browser(folder)
    try:
        yield SimpleNamespace(browser=browser, path=folder / "report.html", findings=findings, folder=folder)
    finally:
        browser.quit()


@pytest.fixture
def fresh(page):
    """The page, loaded anew, in light colours and in a wide window."""
    page.run = page.browser.execute_script
    show(page, "light", 1200)
    page.browser.get(page.path.as_uri())
    wait(lambda: page.run("return document.documentElement.dataset.ready"))
    return page


def wait(condition, seconds=20):
    """Return what ``condition`` returns once it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return value


def show(page, mode, width, height=900):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if mode == "dark" else "light"}
    media = {"media": "print" if mode == "print" else "screen", "features": [scheme]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    # Both reach the page with its next frame, and only then does it paint its map anew.
    page.browser.execute_async_script(
        "const [width, dark, done] = arguments, query = matchMedia('(prefers-color-scheme: dark)');"
        "const settled = () => innerWidth === width && query.matches === dark"
        " ? requestAnimationFrame(() => requestAnimationFrame(() => done())) : requestAnimationFrame(settled);"
        "settled();",
        width,
        mode == "dark",
    )


def screenshot(page, mode, width, path):
    show(page, mode, width)
    show(page, mode, width, page.run("return document.documentElement.scrollHeight"))
    page.run("window.dispatchEvent(new Event('resize'))")
    content = base64.b64decode(page.browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
    path.write_bytes(content)
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def texts(page, selector):
    return page.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)


def click(page, selector):
    page.run("document.querySelector(arguments[0]).click()", selector)


def press(page, *keys):
    for key in keys:
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if key == " " else {}
            page.browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": key, **text})


def mouse(page, kind, x, y, **options):
    button = "left" if kind != "mouseMoved" or options else "none"
    event = {"type": kind, "x": x, "y": y, "button": button, **options}
    page.browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)


def canvas_box(page):
    page.run("document.querySelector('#canvas').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = page.run("return document.querySelector('#canvas').getBoundingClientRect().toJSON()")
    return box["left"], box["top"], box["width"], box["height"]


def test_the_page_makes_no_error_and_no_request(fresh):
    assert fresh.browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in fresh.browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert fresh.path.as_uri() in sent
    assert all(url.startswith(("file:", "data:", "blob:")) for url in sent)
    refused = fresh.browser.execute_async_script(
        "const done = arguments[0]; fetch('https://example.org').then(() => done(false), () => done(true))"
    )
    assert refused
    assert any("Content Security Policy" in entry["message"] for entry in fresh.browser.get_log("browser"))


def test_names_stay_text(fresh):
    assert fresh.run("return document.scripts.length") == 2
    assert set(texts(fresh, "#map-class option")) == set(NAMES)
    assert set(NAMES) <= set(texts(fresh, ".axis .name"))
    assert texts(fresh, ".sheet .id")[0] in fresh.findings.samples["id"].tolist()


def test_a_click_on_a_column_sorts_the_table(fresh):
    impurities = "return [...document.querySelectorAll('#clusters tbody tr')].map(r => +r.cells[2].dataset.value)"
    assert fresh.run(impurities) == sorted(fresh.run(impurities), reverse=True)
    click(fresh, "#clusters th:nth-child(3) button")
    assert fresh.run(impurities) == sorted(fresh.run(impurities))
    sort = "return [...document.querySelectorAll('#clusters th[aria-sort]')].map(e => e.getAttribute('aria-sort'))"
    assert fresh.run(sort) == ["ascending"]
    click(fresh, "#clusters th:nth-child(1) button")
    names = texts(fresh, "#clusters tbody th")
    assert names == fresh.run("return arguments[0].toSorted((a, b) => a.localeCompare(b))", names)
    assert "sorted by class, ascending" in texts(fresh, "#status")


def test_the_rows_of_a_table_can_be_searched(fresh):
    rows = "return [...document.querySelectorAll('#clusters tbody tr:not([hidden])')].map(r => r.textContent)"
    everything = len(fresh.run(rows))
    fresh.run(
        "const f = document.querySelector('.search input'); f.value = 'möwe'; f.dispatchEvent(new Event('input'))"
    )
    assert 0 < len(fresh.run(rows)) < everything
    assert all("Möwe" in text for text in fresh.run(rows))
    fresh.run("const f = document.querySelector('.search input'); f.value = ''; f.dispatchEvent(new Event('input'))")
    click(fresh, ".search [type=checkbox]")
    (row,) = fresh.run(rows)
    assert row.startswith(NAMES[1])
    assert texts(fresh, ".search output") == [f"1 of {everything} rows"]


def test_pointing_shows_an_image_and_clicking_selects_it(fresh):
    left, top, width, height = canvas_box(fresh)
    for x in np.linspace(left + 10, left + width - 10, 80):
        mouse(fresh, "mouseMoved", x, top + height / 2)
        if not fresh.run("return document.querySelector('#tip').hidden"):
            break
    lines = texts(fresh, "#tip-text")[0].split("\n")
    assert lines[0] in fresh.findings.samples["id"].tolist()
    assert f"labelled {NAMES[1]}" in lines
    drawn = fresh.run("const c = document.querySelector('#tip-image');"
                      "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")  # fmt: skip
    assert max(drawn[::4]) > 50
    inside = fresh.run("const t = document.querySelector('#tip').getBoundingClientRect(),"
                       "c = document.querySelector('#canvas').getBoundingClientRect();"
                       "return t.left >= c.left - 1 && t.right <= c.right + 1 && t.bottom <= c.bottom + 1")  # fmt: skip
    assert inside
    mouse(fresh, "mousePressed", x, top + height / 2, clickCount=1)
    mouse(fresh, "mouseReleased", x, top + height / 2, clickCount=1)
    assert texts(fresh, "[data-count]")[0] == "1"
    assert texts(fresh, "#selected li span") == [lines[0]]


def test_dragging_selects_many(fresh):
    left, top, width, height = canvas_box(fresh)
    mouse(fresh, "mousePressed", left + 1, top + 1, clickCount=1, buttons=1)
    mouse(fresh, "mouseMoved", left + width / 2, top + height / 2, buttons=1)
    mouse(fresh, "mouseMoved", left + width - 1, top + height - 1, buttons=1)
    mouse(fresh, "mouseReleased", left + width - 1, top + height - 1, clickCount=1)
    of_class = int((fresh.findings.samples["label"] == 1).sum())
    assert texts(fresh, "[data-count]")[0] == str(of_class)


def test_keyboard_moves_selects_and_clears(fresh):
    fresh.run("document.querySelector('#canvas').focus()")
    press(fresh, "ArrowRight", "ArrowRight", "ArrowUp")
    assert "decided" in texts(fresh, "#status")[0]
    press(fresh, " ")
    assert texts(fresh, "[data-count]")[0] == "1"
    press(fresh, "Escape")
    assert texts(fresh, "[data-count]")[0] == "0"
    assert fresh.run("return getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_table_cards_and_axis_share_the_selection(fresh):
    flagged = int(fresh.findings.flagged.sum())
    click(fresh, "#clusters tr.flagged .pick button")
    assert texts(fresh, "#clusters tr.flagged .pick") == [f"{flagged} selected"]
    assert texts(fresh, "[data-count]")[0] == str(flagged)
    pressed = "return document.querySelectorAll('[data-sample][aria-pressed=true]').length"
    assert fresh.run(pressed) == 24
    click(fresh, "[data-sample]")
    assert fresh.run(pressed) == 23
    assert texts(fresh, "[data-count]")[0] == str(flagged - 1)
    click(fresh, "[data-clear]")
    assert fresh.run("return document.querySelector('[data-save=selection]').disabled")
    fresh.run("document.querySelector('.dot:has(.flagged)').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert texts(fresh, "[data-count]")[0] == str(flagged)


@pytest.mark.parametrize("what", ["drop", "selection"])
def test_lists_are_saved(fresh, what):
    click(fresh, "#clusters tr.flagged .pick button")
    click(fresh, f"[data-save={what}]")
    saved = fresh.folder / f"{what}.txt"
    wait(lambda: saved.exists() and saved.read_text(encoding="utf-8").endswith("\n"))
    ids = fresh.findings.samples["id"][fresh.findings.flagged]
    assert saved.read_text(encoding="utf-8") == "".join(f"{name}\n" for name in ids)


CONTRASTS = """
const part = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const luminance = c => [.2126, .7152, .0722].reduce((sum, weight, k) => sum + weight * part(c[k] / 255), 0);
const numbers = text => text.match(/[\\d.]+/g).map(Number);
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = numbers(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3]) return c;
  }
  return [255, 255, 255];
};
const contrast = (e, property) => {
  const pair = [numbers(getComputedStyle(e)[property]), behind(e)].map(luminance);
  return (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
};
const seen = [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.disabled
  && !e.closest('.unseen, script, style, noscript'));
const texts = seen.filter(e => [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
const marks = seen.filter(e => e.matches('.mark, .threshold'));
return {
  texts: texts.map(e => [contrast(e, e instanceof SVGElement ? 'fill' : 'color'), e.textContent]),
  marks: marks.map(e => [contrast(e, e.matches('.mark') ? 'fill' : 'stroke'), e.outerHTML]),
};
"""


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_contrast_is_enough(fresh, mode):
    """WCAG AA: 4.5 for text and 3 for marks."""
    show(fresh, mode, 1000)
    measured = fresh.run(CONTRASTS)
    assert len(measured["texts"]) > 100
    assert [entry for entry in measured["texts"] if entry[0] < 4.5] == []
    assert len(measured["marks"]) > 10
    assert [entry for entry in measured["marks"] if entry[0] < 3] == []


LAYOUT = """
const kinds = 'h1, h2, h3, p, li > .name, .n, td, figcaption, svg text, dt, dd, button, label, caption';
const boxes = [...document.querySelectorAll(kinds)]
  .filter(e => e.checkVisibility() && !e.closest('.unseen, .skip, #tip') && e.textContent.trim())
  .map(e => [e, e.getBoundingClientRect()])
  .filter(([e, r]) => r.bottom <= (e.closest('.wide')?.getBoundingClientRect().bottom ?? r.bottom));  // in sight
const faults = [], report = (fault, ...e) => faults.push([fault, ...e.map(x => x.textContent.slice(0, 40))]);
for (const [e, r] of boxes) {
  if (!e.closest('.wide') && (r.left < -1 || r.right > innerWidth + 1)) report('cut off', e);
  if (e.matches('td, h1, h2, h3, dd, p') && e.scrollWidth > e.clientWidth + 1 && e.clientWidth) report('overflows', e);
}
boxes.forEach(([a, p], k) => boxes.slice(k + 1).forEach(([b, q]) => {
  const width = Math.min(p.right, q.right) - Math.max(p.left, q.left);
  const height = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
  if (width > 2 && height > 2 && !a.contains(b) && !b.contains(a)) report('overlap', a, b);
}));
if (document.documentElement.scrollWidth > innerWidth) report('the page scrolls sideways');
return faults;
"""


@pytest.mark.parametrize(("mode", "width"), [("light", 1200), ("dark", 1200), ("light", 400), ("print", 700)])
def test_nothing_overlaps_and_the_screenshot_shows_what_it_should(fresh, tmp_path, mode, width):
    pixels = screenshot(fresh, mode, width, tmp_path / f"{mode}-{width}.png")
    assert fresh.run(LAYOUT) == []
    assert pixels.shape[1] == width
    paper = (np.abs(pixels - PAPER[mode]).max(axis=2) < 3).mean()
    assert 0.5 < paper < 0.97
    box = fresh.run("return document.querySelector('.axis .mark.flagged').getBoundingClientRect().toJSON()")
    middle = pixels[int(box["y"] + box["height"] / 2), int(box["x"] + box["width"] / 2)]
    assert np.abs(middle - FLAGGED[mode]).max() < 6
    box = fresh.run("return document.querySelector('#canvas').getBoundingClientRect().toJSON()")
    top, left = int(box["y"]), int(box["x"])
    plot = pixels[top : top + int(box["height"]), left : left + int(box["width"])]
    assert (np.abs(plot - PAPER[mode]).max(axis=2) > 60).mean() > 0.005  # marks are there, in print as well
    first = fresh.run("return document.querySelector('.sheet img').getBoundingClientRect().toJSON()")
    shown = pixels[int(first["y"]) : int(first["y"] + 64), int(first["x"]) : int(first["x"] + 64)]
    assert shown.std() > 10


def test_without_javascript_all_findings_are_on_the_page(page):
    page.run = page.browser.execute_script
    page.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.browser.get(page.path.as_uri())
        source = page.browser.find_elements("css selector", "#clusters tbody tr")
        assert len(source) == len(page.findings.clusters)
        assert not [e for e in page.browser.find_elements("css selector", ".controls, #plot") if e.is_displayed()]
    finally:
        page.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_map_is_printed_in_light_colours(fresh):
    show(fresh, "dark", 1000)
    fresh.run(
        "const data = () => { const c = document.querySelector('#canvas'); return [...c.getContext('2d').getImageData("
        "0, 0, c.width, c.height).data].join(); };"
        "window.before = data(); window.addEventListener('beforeprint', () => { window.printed = data(); });"
        "window.addEventListener('afterprint', () => { window.after = data(); })"
    )
    pdf = fresh.browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert base64.b64decode(pdf).startswith(b"%PDF")
    same = wait(lambda: fresh.run("return window.after && [before === after, before === printed]"))
    assert same == [True, False]


def test_everything_has_a_name_for_screen_readers(fresh):
    nameless = fresh.run(
        "return [...document.querySelectorAll("
        "'button, select, input, img, table, canvas[tabindex], svg[role=img], [role=region]')]"
        ".filter(e => e.checkVisibility()).filter(e => !(e.getAttribute('aria-label') || e.alt || e.labels?.length ||"
        " e.textContent.trim() || e.caption)).map(e => e.outerHTML.slice(0, 99))"
    )
    assert nameless == []
    assert fresh.run("return [...document.querySelectorAll('table')].every(t => t.caption && t.tHead)")
    levels = fresh.run("return [...document.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert max(np.diff(levels)) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_pages_of_other_results_work_as_well(fresh, cases, tmp_path, kind):
    path = fresh.folder / "other.html"
    path.write_text(cases[kind].html, encoding="utf-8")
    fresh.browser.get_log("browser")
    fresh.browser.get(path.as_uri())
    wait(lambda: fresh.run("return document.documentElement.dataset.ready"))
    assert fresh.browser.get_log("browser") == []
    numbers = (
        "return [...document.querySelectorAll('#table-1 tbody tr')].map(r => +r.cells[arguments[0]].dataset.value)"
    )
    column = fresh.run("return [...document.querySelectorAll('#table-1 thead th')].findIndex(h => h.matches('.n'))")
    click(fresh, f"#table-1 th:nth-child({column + 1}) button")
    values = [value for value in fresh.run(numbers, column) if value is not None]
    assert values == sorted(values, reverse=True)
    for mode, width in (("light", 1200), ("dark", 400), ("print", 700)):
        if (kind, mode) == ("bench", "print"):
            continue  # all the thousand rows of its tables would be in the picture
        pixels = screenshot(fresh, mode, width, tmp_path / f"{kind}-{mode}-{width}.png")
        assert pixels.shape[1] == width
        assert fresh.run(LAYOUT) == []
        measured = fresh.run(CONTRASTS)
        assert [entry for entry in measured["texts"] if entry[0] < 4.5] == []
        assert [entry for entry in measured["marks"] if entry[0] < 3] == []


def test_the_tables_of_other_results_can_be_searched(fresh, cases):
    path = fresh.folder / "other.html"
    path.write_text(cases["check"].html, encoding="utf-8")
    fresh.browser.get(path.as_uri())
    wait(lambda: fresh.run("return document.documentElement.dataset.ready"))
    click(fresh, ".search [type=checkbox]")
    rejected = cases["check"].result.rejected
    assert len(texts(fresh, "#table-1 tbody tr:not([hidden])")) == rejected.sum()
    assert texts(fresh, ".search output") == [f"{rejected.sum()} of {len(rejected)} rows"]


@pytest.fixture(scope="module")
def cifar(real_data, tmp_path_factory):
    """The page of a scan of a part of CIFAR-10 with all poisoned images, by a network that was trained on the whole."""
    (path,) = (path for path in sorted(VICTIMS.glob("*.json")) if json.loads(path.read_text())["name"] == VICTIM)
    planned = json.loads(path.read_text())["attack"]
    attack = undoor.Attack(undoor.OnePixel(**planned.pop("trigger")), **planned)
    poisoned = undoor.poison(undoor.read(real_data / "cifar10"), attack)
    clean = np.flatnonzero(~poisoned.truth.poisoned)
    part = poisoned.take(np.concatenate([clean[::6], np.flatnonzero(poisoned.truth.poisoned)]))
    model, _ = undoor.load_model(path.with_suffix(".safetensors"))
    findings = undoor.scan(model, part)
    assert findings.classes_flagged == (attack.target,)
    folder = tmp_path_factory.mktemp("cifar")
    write_findings(findings, part, Average(), folder)
    return folder / "report.html"


@pytest.mark.parametrize("kind", ["digits", "cifar"])
def test_screenshots_of_real_scans(fresh, tmp_path, kind, request):
    """The scans are those of the demonstration on the digits, and of CIFAR-10."""
    if kind == "cifar":
        path = request.getfixturevalue("cifar")
    else:
        path = request.getfixturevalue("demonstration")[1] / "findings" / "report.html"
    assert path.stat().st_size < 6_000_000
    fresh.browser.get_log("browser")
    fresh.browser.get(path.as_uri())
    wait(lambda: fresh.run("return document.documentElement.dataset.ready"))
    assert fresh.browser.get_log("browser") == []
    for mode, width in (("light", 1200), ("dark", 1200), ("light", 400), ("print", 700)):
        pixels = screenshot(fresh, mode, width, tmp_path / f"{kind}-{mode}-{width}.png")
        assert fresh.run(LAYOUT) == []
        assert [entry for entry in fresh.run(CONTRASTS)["texts"] if entry[0] < 4.5] == []
        box = fresh.run("return document.querySelector('.axis .mark.flagged').getBoundingClientRect().toJSON()")
        middle = pixels[int(box["y"] + box["height"] / 2), int(box["x"] + box["width"] / 2)]
        assert np.abs(middle - FLAGGED[mode]).max() < 6
        for image in fresh.run("return [...document.querySelectorAll('.sheet li:first-child img')]"
                               ".slice(0, 3).map(e => e.getBoundingClientRect().toJSON())"):  # fmt: skip
            top, left = int(image["y"]), int(image["x"])
            assert pixels[top : top + int(image["height"]), left : left + int(image["width"])].std() > 3
