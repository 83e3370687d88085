"""The page in a real browser: charts under load, photographs tried, keys, hostile labels, dark, on a phone."""

from __future__ import annotations

import base64
import io
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeserve.bundle import Candidate, Classification, Task
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear_bundle
from tests.seeing import (
    COLOURS,
    HOW,
    boxes_bundle,
    colours_bundle,
    map_bundle,
    photograph,
    with_task,
)
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.waiting import wait_for

selenium = pytest.importorskip("selenium", reason="selenium is not installed (extra dev)")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium with chromedriver: make test-packages"
    ),
]
KEY = "infer-key-0123456789"
HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"


class Browser:
    """One headless browser, with what tests ask it."""

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        assert CHROMIUM is not None
        options.binary_location = CHROMIUM
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.driver.set_script_timeout(30)

    def open(self, url: str, width: int = 1280, scheme: str = "light") -> None:
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(url)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def text(self, selector: str) -> str:
        """The text that is seen; empty if nothing is."""
        return str(
            self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        )

    def waits(self, what: Callable[[], bool]) -> None:
        wait_for(what, 30)

    def element(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def choose(self, select: str, text: str) -> None:
        from selenium.webdriver.support.ui import Select

        def there() -> bool:
            return text in [o.text for o in Select(self.element(select)).options]

        self.waits(there)
        Select(self.element(select)).select_by_visible_text(text)

    def send_photo(self, file: Path) -> str:
        """What is said of the answer."""
        self.element("#photo").send_keys(str(file))
        return self.said()

    def send_json(self) -> str:
        self.element("#json-form button").click()
        return self.said()

    def said(self) -> str:
        self.waits(
            lambda: self.text("#try-said") not in ("Asking…", "The answer appears here.", "")
        )
        return self.text("#try-said")

    def pixel(self, x: float, y: float) -> list[int]:
        """The colour in the picture, at shares of its width and height."""
        code = """const c = document.querySelector('#picture');
        return [...c.getContext('2d').getImageData(Math.min(c.width - 1, arguments[0] * c.width),
            Math.min(c.height - 1, arguments[1] * c.height), 1, 1).data.slice(0, 3)]"""
        return list(self.js(code, x, y))

    def complaints(self) -> list[str]:
        """Errors of scripts, and of the policy, since the last time."""
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = Browser()
    yield found
    found.driver.quit()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "lime's photo.jpg").write_bytes(photograph("lime", 80, 40))
    halves = np.zeros((40, 80, 3), np.uint8)
    halves[:, :40, 0] = 255
    halves[:, 40:, 2] = 255
    file = io.BytesIO()
    Image.fromarray(halves).save(file, "PNG")
    (folder / "halves.png").write_bytes(file.getvalue())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("bundles")
    chain = (
        Candidate("onnx-fp32", "onnxruntime", "gpu"),
        Candidate("onnx-fp32", "onnxruntime", "cpu"),
    )
    hostile = colours_bundle(folder, "größe")
    task = Task("classification", HOW, postprocess=Classification("logits", "softmax", top_k=3))
    with_task(hostile, task, (HOSTILE, "green", "blue"))
    bundles = [
        linear_bundle(folder, chain=chain), colours_bundle(folder), boxes_bundle(folder), map_bundle(folder), hostile,
    ]  # fmt: skip
    settings = Settings(
        bundle=str(bundles[0]),
        bundles=tuple(map(str, bundles[1:])),
        http_port=0,
        reopen=600.0,
        inject=("gpu:stand-in", "gpu:crash@60"),
    )
    with Background(settings) as running, RawClient(running.url) as client:
        devices = [""]
        while devices[-1] != "cpu":
            client.send(post(infer_body([[1, 2, 3, 4]])))
            devices.append(client.response()[1]["x-edgeserve-device"])
        yield running


def ask(server: Background, count: int = 20) -> None:
    with RawClient(server.url) as client:
        for number in range(count):
            client.send(post(infer_body([[1, 2, 3, 4]]) if number % 5 else b'{"inputs": []}'))
            client.response()


def test_charts_show_the_load_and_the_fallback(browser: Browser, server: Background) -> None:
    browser.open(server.url)
    ask(server)
    rate = "return [...document.querySelectorAll('#charts svg')].map((s) => s.ariaLabel)"
    browser.waits(lambda: "linear 1 " in "".join(browser.js(rate)))
    labels = browser.js(rate)
    assert [label.partition(",")[0] for label in labels] == ["Requests", "Time", "Errors", "Queue"]
    assert browser.js("return document.querySelectorAll('#charts path, #charts circle').length") > 4
    marks = browser.js(
        "return [...document.querySelectorAll('.mark title')].map((t) => t.textContent)"
    )
    assert any(mark.startswith("fallback of linear version 1, ") for mark in marks)
    models = browser.text("#live-models")
    assert "degraded: not on its first candidate" in models
    assert "Instead of onnxruntime/gpu/onnx-fp32: " in models
    assert "injected: gpu:crash@60" in models
    assert browser.text("#live-head .badge") == "degraded"
    rows = browser.js(
        "return [...document.querySelectorAll('#versions tbody tr')].map((r) => r.innerText)"
    )
    assert len(rows) == 5
    assert any(row.startswith("linear") and "100 %" in row for row in rows)
    browser.choose("#of", "linear version 1")
    browser.waits(lambda: "linear 1" in browser.js(rate)[0])
    assert browser.js("return document.title") == "edgeserve: degraded"
    hosts = browser.js("return performance.getEntriesByType('resource').map((r) => r.name)")
    assert hosts
    assert all(host.startswith(server.url) for host in hosts)
    assert browser.complaints() == []


def test_a_chart_is_read_by_keyboard(browser: Browser, server: Background) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(server.url)
    count = "return document.querySelectorAll('#charts svg')[0].ariaLabel"
    browser.waits(lambda: "Now:" in (browser.js(count) or ""))
    chart = browser.element("#charts svg")
    browser.js("document.querySelector('#charts svg').focus()")
    chart.send_keys(Keys.HOME)
    assert "Now:" not in browser.js(count)
    assert browser.js("return document.querySelectorAll('#charts .rule').length") == 1
    chart.send_keys(Keys.ESCAPE)
    assert "Now:" in browser.js(count)


def test_boxes_are_drawn_on_the_photograph(
    browser: Browser, server: Background, pictures: Path
) -> None:
    browser.open(server.url)
    browser.choose("#try-model", "boxes version 1")
    said = browser.send_photo(pictures / "lime's photo.jpg")
    assert said.startswith("Answered in ")
    assert " ms " in said
    assert "onnx-fp32" in said
    browser.waits(lambda: browser.element("#picture").is_displayed())
    assert browser.js("return [picture.width, picture.height]") == [80, 40]
    assert browser.text("#found").split() == ["dog", "0.75"]
    lime, edge = browser.pixel(0.8, 0.5), browser.pixel(0.5, 0.9)  # the box is the left half
    assert lime[1] > 200
    assert lime[0] < 80
    assert edge != lime
    assert browser.complaints() == []


def test_a_turned_photograph_is_shown_upright(
    browser: Browser, server: Background, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.new("RGB", (80, 40), "lime").save(tmp_path / "turned.jpg", exif=exif)
    browser.open(server.url)
    browser.choose("#try-model", "boxes version 1")
    browser.send_photo(tmp_path / "turned.jpg")
    browser.waits(lambda: browser.element("#picture").is_displayed())
    assert browser.js("return [picture.width, picture.height]") == [40, 80]
    assert browser.text("#found").split() == ["dog", "0.75"]


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_photograph_is_dropped_or_pasted(browser: Browser, server: Background, kind: str) -> None:
    code = """const [kind, base64] = arguments;
        const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], 'dropped.jpg', {type: 'image/jpeg'}));
        const event = kind === 'drop' ? new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
            : new ClipboardEvent('paste', {clipboardData: data, bubbles: true});
        document.querySelector(kind === 'drop' ? '#drop' : 'body').dispatchEvent(event)"""
    browser.open(server.url)
    browser.choose("#try-model", "colours version 1")
    browser.js(code, kind, base64.b64encode(photograph("blue")).decode())
    assert browser.said().startswith("Answered in ")
    assert browser.text("#found").split()[:2] == ["blue", "1"]
    assert "@dropped.jpg" in browser.text("#curl-line")


def test_curl_s_line_gives_the_same(browser: Browser, server: Background, pictures: Path) -> None:
    browser.open(server.url)
    browser.choose("#try-model", "größe version 1")
    browser.send_photo(pictures / "lime's photo.jpg")
    line = browser.text("#curl-line")
    assert shlex.split(line)[:3] == ["curl", "--data-binary", "@lime's photo.jpg"]
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(["sh", "-c", line], cwd=pictures, capture_output=True, text=True)
    assert '"label":"green"' in done.stdout
    browser.choose("#try-model", "linear version 1")
    browser.waits(lambda: '"x"' in browser.js("return json.value"))
    assert browser.send_json().startswith("Answered in ")
    assert '"y"' in browser.text("#raw pre")
    line = browser.text("#curl-line")
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert '"outputs":{"y":[0.5,0.5,0.5]}' in done.stdout


def test_labels_with_markup_are_text(browser: Browser, server: Background, pictures: Path) -> None:
    browser.open(server.url)
    browser.choose("#try-model", "größe version 1")
    browser.send_photo(pictures / "lime's photo.jpg")
    browser.waits(lambda: HOSTILE in browser.text("#found"))
    assert browser.js("return document.images.length") == 0
    assert browser.js("return document.querySelectorAll('#found meter').length") == 3
    assert "hacked" not in browser.js("return document.title")
    assert browser.complaints() == []


def test_a_class_map_is_painted_over_the_photograph(
    browser: Browser, server: Background, pictures: Path
) -> None:
    browser.open(server.url)
    browser.choose("#try-model", "map version 1")
    browser.send_photo(pictures / "halves.png")
    browser.waits(lambda: browser.element("#picture").is_displayed())
    left, right = browser.pixel(0.2, 0.5), browser.pixel(0.8, 0.5)
    assert left == [255, 0, 0]  # class 0 is left as it is
    assert right not in ([0, 0, 255], left)
    assert sorted(browser.text("#found").split()) == ["0.5", "0.5", "blue", "red"]


def test_the_example_of_an_image_model_is_answered(browser: Browser, server: Background) -> None:
    browser.open(server.url)
    browser.choose("#try-model", "colours version 1")
    browser.waits(lambda: '"b64"' in browser.js("return json.value"))
    assert browser.send_json().startswith("Answered in ")
    assert set(browser.text("#found").split()) & set(COLOURS)


def test_errors_are_the_server_s_own_words(
    browser: Browser, server: Background, pictures: Path
) -> None:
    browser.open(server.url)
    browser.choose("#try-model", "colours version 1")
    assert browser.send_photo(pictures / "broken.jpg").startswith("400: the image cannot be read")
    browser.js("json.value = '{'")
    assert "400: " in browser.send_json()
    assert not browser.element("#picture").is_displayed()
    assert browser.element("#curl-line").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(
    browser: Browser, server: Background, pictures: Path, scheme: str
) -> None:
    browser.open(server.url, 375, scheme)
    browser.choose("#try-model", "boxes version 1")
    browser.send_photo(pictures / "lime's photo.jpg")
    browser.waits(
        lambda: browser.js("return document.querySelectorAll('#versions tbody tr').length") == 5
    )
    assert browser.js("return [document.documentElement.scrollWidth, innerWidth]") == [375, 375]
    wide = """return [...document.querySelectorAll('main *')].filter((e) => !e.closest('svg, pre, textarea')
        && e.getBoundingClientRect().right > 376).map((e) => e.outerHTML.slice(0, 80))"""
    assert browser.js(wide) == []
    back = browser.js("return getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, back[4:-1].split(","))) < 60) is (scheme == "dark")


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Browser, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"infer {KEY}\n")
    settings = Settings(bundle=str(linear_bundle(tmp_path)), http_port=0, keys=str(keys))
    with Background(settings) as server:
        browser.open(server.url)
        browser.waits(lambda: browser.element("#key").is_displayed())
        assert not browser.element("#main").is_displayed()
        browser.element("#key").send_keys("not-a-key-0123456789\n")
        browser.waits(lambda: browser.text("#notice").startswith("The key is refused: "))
        browser.element("#key").send_keys(KEY + "\n")
        browser.waits(lambda: "linear" in browser.text("#live-models"))
        browser.waits(lambda: '"x"' in browser.js("return json.value"))
        assert browser.send_json().startswith("Answered in ")
        line = browser.text("#curl-line")
        assert KEY not in line
        assert '-H "Authorization: Bearer $EDGESERVE_API_KEY"' in line
        assert browser.js("return [document.cookie, localStorage.length]") == ["", 0]
        browser.driver.refresh()
        browser.waits(lambda: "linear" in browser.text("#live-models"))
        browser.element("#key-forget").click()
        browser.waits(lambda: not browser.element("#main").is_displayed())
        assert "linear" not in browser.js("return document.body.textContent")


def test_a_server_that_is_gone_is_noticed(browser: Browser, tmp_path: Path) -> None:
    with Background(Settings(bundle=str(linear_bundle(tmp_path)), http_port=0)) as server:
        browser.open(server.url)
        browser.waits(lambda: "linear" in browser.text("#live-models"))
    browser.waits(lambda: "does not answer" in browser.text("#notice"))
    browser.complaints()


def test_a_server_without_models_says_so(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    settings = Settings(bundle=str(tmp_path / "models"), http_port=0, model_control=True)
    with Background(settings) as server:
        browser.open(server.url)
        browser.waits(lambda: "No requests in the last 15 minutes" in browser.text("#charts"))
        assert "No models." in browser.text("#live-models")
        assert not browser.element("#try").is_displayed()
