"""The page in a real browser: nothing complains, nothing sticks out, light and dark, phone and desk."""

import shutil
from pathlib import Path

import pytest

from tests.report.runs import RunFolder, demo, hostile
from tilth.report import write

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM.exists() and DRIVER.exists()), reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    profile = tmp_path_factory.mktemp("profile")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    failed = RunFolder(folder / "failed", failed={"stage": "base", "what": "no space left on the device"}, finished=None)
    runs = {"demo": demo(folder / "demo"), "hostile": hostile(folder / "hostile"), "failed": failed}
    return {name: write(run.save()) for name, run in runs.items()}


def show(browser, page, width, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["demo", "hostile", "failed"])
def test_nothing_complains_and_nothing_sticks_out(browser, pages, name, width, scheme, tmp_path):
    show(browser, pages[name], width, scheme)
    for opened in (False, True):
        if opened:
            browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    picture = tmp_path / "page.png"
    assert browser.save_screenshot(str(picture)) and picture.stat().st_size > 10_000


CONTRAST = """
const luminance = colour => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)') return colour;
  }
};
document.querySelectorAll('details').forEach(one => one.open = true);
const worst = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim()) continue;
  const ink = element.closest('svg') ? getComputedStyle(element).fill : getComputedStyle(element).color;
  const [a, b] = [luminance(ink), luminance(behind(element))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) worst.push(element.className + ': ' + walker.currentNode.data.slice(0, 40));
}
return worst;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["demo", "failed"])
def test_every_text_has_a_contrast_of_4_5_to_1(browser, pages, name, scheme):
    show(browser, pages[name], 1280, scheme)
    assert browser.execute_script(CONTRAST) == []


def test_dark_is_dark_and_figures_follow(browser, pages):
    def look(scheme):
        show(browser, pages["demo"], 1280, scheme)
        return browser.execute_script(
            "const line = [...document.querySelectorAll('figure svg path')].find(p => p.getAttribute('style').includes('--series-1'));"
            "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(line).stroke]"
        )

    (light, light_line), (dark, dark_line) = look("light"), look("dark")
    assert light != dark and light_line != dark_line
    assert max(int(part) for part in dark[4:-1].split(",")) < 60 < 200 < min(int(part) for part in light[4:-1].split(","))


def test_letters_in_figures_are_readable_on_a_phone(browser, pages):
    show(browser, pages["demo"], 360, "light")
    heights = browser.execute_script(
        "return [...document.querySelectorAll('figure svg text')].map(t => t.getBoundingClientRect().height)"
    )
    assert len(heights) > 50 and sorted(heights)[len(heights) // 2] >= 10


def test_wide_tables_scroll_in_their_own_box_and_can_be_reached_by_keyboard(browser, pages):
    show(browser, pages["demo"], 360, "light")
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].map(b => [b.scrollWidth - b.clientWidth, b.tabIndex])"
    )
    assert any(hidden > 0 for hidden, _ in boxes) and all(index == 0 for _, index in boxes)
