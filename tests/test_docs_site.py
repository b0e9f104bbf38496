"""The documentation site: complete, and right in a real browser, on a phone and on a desk.

`make docs-test` builds it and runs what is marked `docs`; the rest is quick and belongs to `make test`.
"""

import functools
import http.server
import json
import pathlib
import re
import shutil
import threading
import time

import pytest

import kerastl

ROOT = pathlib.Path(__file__).parents[1]
SITE = ROOT / "docs" / "_build" / "html"
WINDOWS = {
    "phone": {"width": 360, "height": 780, "deviceScaleFactor": 3, "mobile": True},
    "desktop": {"width": 1440, "height": 900, "deviceScaleFactor": 1, "mobile": False},
}
PAGES_OF_SPHINX = {"search.html", "genindex.html", "py-modindex.html"}

every_window = pytest.mark.parametrize("window", WINDOWS)


def test_every_public_name_is_in_the_api_reference():
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.rst"))
    documented = set(re.findall(r"^\.\. auto\w+:: (\w+)", pages, re.MULTILINE))
    missing = set(kerastl.__all__) - documented - {"__version__"}
    assert missing == set(), "put them onto a page in docs/api/"


def test_pages_load_nothing_from_elsewhere():
    """Links may lead anywhere; pictures, scripts and styles come with the site."""
    for path in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "how-to").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"!\[[^\]]*\]\(https?:|<(img|script|link|iframe)\b[^>]*https?:", text), path.name
        assert not re.search(r"\]\((/|file:)", text), f"{path.name}: links within the site are relative"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    """The address of the built site, served on this machine."""
    if not (SITE / "index.html").is_file():
        pytest.skip("The site is not built: run `make docs`.")
    handler = functools.partial(_Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium, from the system: nothing is downloaded."""
    pytest.importorskip("selenium", reason='Selenium is not installed: pip install -e ".[docs]"')
    from selenium import webdriver

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("There is no Chromium with its driver: on Debian, apt-get install chromium chromium-driver.")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", f"user-data-dir={profile}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    chromium.set_page_load_timeout(60)
    yield chromium
    chromium.quit()


def pages() -> list[str]:
    """Return the built pages, from the site's root."""
    return sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)


def resize(browser, window: str) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", WINDOWS[window])


def open_page(browser, url: str) -> None:
    """Open a page and forget what was logged before."""
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(url)
    wait_for(lambda: browser.execute_script("return document.readyState") == "complete")


def wait_for(condition, seconds: float = 20):
    """Return the condition's first true value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise TimeoutError(f"still false after {seconds} s")


def problems_of_loading(browser, address: str) -> list[str]:
    """Return what the console says, what came from elsewhere, and what is missing."""
    found = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        method, values = event["method"], event["params"]
        if method == "Network.requestWillBeSent":
            url = values["request"]["url"]
            if not url.startswith((address, "data:", "blob:", "about:")):
                found.append(f"from elsewhere: {url}")
        elif method == "Network.responseReceived" and values["response"]["status"] >= 400:
            found.append(f"{values['response']['status']}: {values['response']['url']}")
        elif method == "Network.loadingFailed" and not values.get("canceled"):
            found.append(f"not loaded: {values.get('errorText')}")
    return found


@pytest.mark.docs
def test_the_checks_find_what_is_wrong(browser, address):
    """A page with every fault, so that the tests below can fail."""
    faulty = SITE / "faulty.html"
    faulty.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><img src=missing.png>"
        "<div style='width:2000px'>wide</div><img src='http://127.0.0.1:9/elsewhere.png'><script>null.x</script>"
    )
    try:
        resize(browser, "phone")
        open_page(browser, address + "faulty.html")
        found = "\n".join(problems_of_loading(browser, address))
        assert "404: " in found
        assert "from elsewhere: http://127.0.0.1:9/" in found
        assert "TypeError" in found
        assert width_of(browser) > 2000
    finally:
        faulty.unlink()


def width_of(browser) -> int:
    return browser.execute_script("return document.documentElement.scrollWidth")


@pytest.mark.docs
@every_window
def test_every_page_loads_and_fits(browser, address, window):
    resize(browser, window)
    found = {}
    for page in pages():
        open_page(browser, address + page)
        problems = problems_of_loading(browser, address)
        if width_of(browser) > WINDOWS[window]["width"]:
            problems.append(f"{width_of(browser)} pixels wide")
        if page not in PAGES_OF_SPHINX and not browser.find_elements("css selector", "article h1"):
            problems.append("no heading")
        empty = "return [...document.images].filter(one => !one.complete || !one.naturalWidth).map(one => one.src)"
        problems += [f"picture is empty: {src[:100]}" for src in browser.execute_script(empty)]
        if problems:
            found[page] = problems
    assert found == {}
    assert len(pages()) > 25


def search(browser, address: str, words: str) -> list[str]:
    """Search as a reader does, from the box on the first page; return the addresses that were found."""
    open_page(browser, address + "index.html")
    box = browser.find_element("css selector", "input.sidebar-search")
    box.send_keys(words)
    box.submit()
    done = "return document.querySelector('#search-results .search-summary')?.textContent || ''"
    wait_for(lambda: re.match("Search finished|Your search did not match", browser.execute_script(done)))
    return [one.get_attribute("href") for one in browser.find_elements("css selector", "#search-results li > a")]


@pytest.mark.docs
def test_search_finds_batch_norm(browser, address):
    resize(browser, "desktop")
    found = search(browser, address, "BatchNorm")
    assert any("concepts.html" in href for href in found)
    browser.get(found[0])
    assert "BatchNorm" in browser.find_element("css selector", "article").text


@pytest.mark.docs
@pytest.mark.parametrize(
    "message",
    [
        "must be compiled before fit: freeze and unfreeze un-compile it on purpose",
        "'list' object has no attribute 'trainable'",
        "This optimizer can only be called for the variables it was originally built with",
        "The pixels look scaled already",
    ],
)
def test_search_finds_an_error_by_its_message(browser, address, message):
    resize(browser, "desktop")
    assert any("errors.html" in href for href in search(browser, address, message))


@pytest.mark.docs
def test_search_can_find_nothing(browser, address):
    resize(browser, "desktop")
    assert search(browser, address, "xyzzyplugh") == []


@pytest.mark.docs
@every_window
def test_notebooks_show_their_plots(browser, address, window):
    notebooks = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))  # as they were when the site was built
    if not notebooks:
        pytest.skip("There is no notebook yet.")
    resize(browser, window)
    shown = 0
    for path in notebooks:
        content = json.loads(path.read_text(encoding="utf-8"))
        outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
        kept = sum("image/png" in output.get("data", {}) for output in outputs)
        open_page(browser, f"{address}notebooks/{path.stem}.html")
        plots = (
            "return [...document.querySelectorAll('.cell_output img')].map(one => [one.naturalWidth, one.clientWidth])"
        )
        widths = browser.execute_script(plots)
        assert len(widths) == kept, path.name
        assert all(natural > 0 and 0 < width <= WINDOWS[window]["width"] for natural, width in widths), path.name
        shown += kept
    assert shown > 0
