"""The operator's page in a real browser: log in, watch a stream, load and unload a model, retry a dead letter."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness.checkout import ROOT
from harness.server import KEY, PUBLISHER, READ_KEY, Server, running_server

from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass, tenant_owner
from inferflux.broker.wire.requests import Claim
from inferflux.config import load

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::ResourceWarning")]

SHOTS = os.environ.get("INFERFLUX_SCREENSHOTS")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"runtime": {"scheduler": {"max_batch_size": 4}, "stub": {"step_s": 0.02}}}
    with running_server(tmp_path_factory.mktemp("page"), settings=settings) as running:
        yield running


class Page:
    """A tab."""

    def __init__(self, driver: Any, server: Server) -> None:
        self.driver = driver
        self.server = server

    def open(self) -> None:
        self.driver.get(f"{self.server.url}/ui")
        self.driver.execute_script("sessionStorage.clear()")
        self.driver.get(f"{self.server.url}/ui")

    def log_in(self, key: str = KEY) -> None:
        self.open()
        self.find("key").send_keys(key + Keys.ENTER)

    def find(self, name: str) -> Any:
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return str(self.find(name).text)

    def until(self, what: str, condition: Callable[[], Any], timeout_s: float = 120) -> Any:
        wait = WebDriverWait(
            self.driver, timeout_s, poll_frequency=0.1, ignored_exceptions=[StaleElementReferenceException]
        )
        return wait.until(lambda _: condition(), what)

    def press(self, label: str) -> None:
        """Click the button that a screen reader calls so."""
        self.until(label, lambda: self.driver.find_elements(By.CSS_SELECTOR, f'button[aria-label="{label}"]'))
        self.driver.find_element(By.CSS_SELECTOR, f'button[aria-label="{label}"]').click()

    def shoot(self, name: str) -> None:
        if SHOTS:
            assert self.driver.save_screenshot(str(Path(SHOTS) / f"{name}.png"))


@pytest.fixture(scope="module")
def driver(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1400",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Chromium leaves a folder behind when it ends.
    environ = os.environ | {"TMPDIR": str(tmp_path_factory.mktemp("chromium"))}
    service = webdriver.ChromeService(executable_path=chromedriver, env=environ)
    made = webdriver.Chrome(options=options, service=service)
    made.set_script_timeout(120)
    yield made
    made.quit()


@pytest.fixture
def page(driver: Any, server: Server) -> Iterator[Page]:
    driver.get_log("browser")
    driver.get_log("performance")
    yield Page(driver, server)
    complaints = [each["message"] for each in driver.get_log("browser") if each["level"] == "SEVERE"]
    # A refused key is the answer that a test asked for, and the browser logs every 4xx.
    assert not [each for each in complaints if not re.search(r"status of 40[13] ", each)]
    asked = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    assert asked
    assert all(url.startswith((server.url, "data:")) for url in asked), asked


def test_a_key_without_the_scope_stays_outside(page: Page) -> None:
    page.log_in(READ_KEY)
    page.until("refusal", lambda: "admin" in page.text("notice"))
    assert not page.find("page").is_displayed()
    assert page.driver.switch_to.active_element.get_attribute("id") == "key"


def test_a_stream_moves_the_numbers(page: Page) -> None:
    page.log_in()
    page.until("the fleet", lambda: "ready" in page.text("workers"))
    Select(page.find("ask-model")).select_by_value("stub")
    page.find("ask-text").send_keys("Tell me about the sea")
    page.find("ask-tokens").clear()
    page.find("ask-tokens").send_keys("600")
    page.find("ask").find_element(By.CSS_SELECTOR, "button[type=submit]").click()
    page.until("words", lambda: len(page.text("answer")) > 20)
    page.until("a queue", lambda: "acme" in page.text("lanes"))
    page.until("throughput", lambda: tile(page, "Tokens/s") > 5)
    page.until("pages", lambda: re.search(r"[1-9]\d* of \d+\s+[1-9]", page.text("workers")))
    page.driver.execute_script("window.scrollTo(0, 0)")
    page.shoot("ui-light")
    page.until("the end", lambda: "first token after" in page.text("answer-about"))
    page.until("latency", lambda: "ms" in tile_text(page, "First token, median"))
    page.until("an empty queue", lambda: "Nothing waits" in page.text("lanes"))


TURNS = """
const done = arguments[arguments.length - 1];
import("/ui/metrics.js").then(({ Meters, Samples }) => {
  const bucket = (bound, count) => `inferflux_time_to_first_token_seconds_bucket{model="m",le="${bound}"} ${count}`;
  const said = (open, fast, all) => new Samples([
    `inferflux_streams_open{model="m"} ${open}`,
    `inferflux_worker_tokens_per_second{model="m",worker="w"} 30`,
    bucket("0.1", fast), bucket("+Inf", all),
  ].join("\\n"));
  const meters = new Meters();
  meters.add("a", said(3, 100, 100), 1);
  meters.add("b", said(2, 0, 50), 2);
  meters.add("a", said(3, 110, 110), 3);
  meters.add("b", said(2, 0, 50), 4);
  done(Object.fromEntries(meters.tiles()));
}, (error) => done(String(error)));
"""


def test_replicas_that_answer_in_turns_are_told_apart(page: Page) -> None:
    page.open()
    tiles = page.driver.execute_async_script(TURNS)
    assert (tiles["Tokens/s"], tiles["Streams open"], tiles["First token, 95 %"]) == ("30.0", 5, "≤ 100 ms"), tiles


def test_metrics_name_the_replica(server: Server) -> None:
    answer = server.get("/v1/admin/metrics")
    assert answer.headers["x-inferflux-replica"] == server.get("/v1/admin/status").json()["replica"]


def test_a_model_is_loaded_and_unloaded(page: Page) -> None:
    page.log_in()
    page.until("models", lambda: "stub" in page.text("registry"))
    page.find("load-id").send_keys("second")
    Select(page.find("load-backend")).select_by_visible_text("stub")
    page.find("load").find_element(By.CSS_SELECTOR, "button[type=submit]").click()
    page.until("loaded", lambda: re.search(r"second stub ready", page.text("registry")))
    page.press("Unload second")
    page.until("unloaded", lambda: "second" not in page.text("registry"))
    assert page.text("notice") == ""


def test_a_dead_letter_is_retried(page: Page) -> None:
    asyncio.run(bury(page.server))
    page.log_in()
    page.until("the letter", lambda: "attempts_exhausted" in page.text("letters"))
    page.press(f"Retry {tenant_owner(PUBLISHER)}.poison")
    page.until("the answer", lambda: "was answered with 4 tokens" in page.text("done"))
    page.until("none left", lambda: "No request was given up" in page.text("letters"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(page: Page, scheme: str) -> None:
    spec = find_spec("axe_core_python")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("axe-core-python is not installed")
    axe = (Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.open()
    for state in ("outside", "inside"):
        if state == "inside":
            page.log_in()
            page.until("the fleet", lambda: "ready" in page.text("workers"))
            if scheme == "dark":
                page.shoot("ui-dark")
        page.driver.execute_script(axe)
        found = page.driver.execute_async_script("axe.run(document).then(arguments[arguments.length - 1])")
        faults = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]
        assert not faults, state
        assert len(found["passes"]) > 10
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_everything_is_reached_by_keyboard(page: Page) -> None:
    page.log_in()
    page.until("the fleet", lambda: "ready" in page.text("workers"))
    body = page.driver.find_element(By.TAG_NAME, "body")
    page.driver.execute_script("document.activeElement.blur()")
    seen, names = [], {"leave", "load-id", "load-backend", "ask-model", "ask-text", "ask-tokens"}
    for _ in range(60):
        (seen[-1] if seen else body).send_keys(Keys.TAB)
        active = page.driver.switch_to.active_element
        seen.append(active)
        names.discard(active.get_attribute("id"))
        if not names:
            break
    assert not names


def test_the_page_holds_nothing_and_asks_nobody_else(server: Server) -> None:
    index = httpx.get(f"{server.url}/ui", timeout=60)
    policy = index.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert index.headers["x-content-type-options"] == "nosniff"
    for name in re.findall(r'(?:src|href)="(/ui/[^"]+)"', index.text):
        assert httpx.get(server.url + name, timeout=60).headers["content-security-policy"] == policy
    for path in (ROOT / "api" / "ui").iterdir():
        urls = set(re.findall(r"https?://[^\s\"'`]+", path.read_text()))
        assert urls <= {"http://www.w3.org/2000/svg"}, path.name
    assert httpx.get(f"{server.url}/ui/nothing.js", timeout=60).status_code == 404


def tile_text(page: Page, name: str) -> str:
    pairs = page.driver.execute_script(
        "return [...document.querySelectorAll('#tiles div')].map((each) => [...each.children].map((x) => x.innerText))"
    )
    return str(dict(pairs)[name])


def tile(page: Page, name: str) -> float:
    return float(tile_text(page, name))


async def bury(server: Server) -> None:
    """A prompt on which three workers were lost."""
    settings = load.load(server.folder / "server.yaml", {}).settings
    api = await JetStreamBroker.connect(settings, "api", "test")
    worker = await JetStreamBroker.connect(settings, "worker", "test")
    lane = Lane("stub", ServiceClass.DEFAULT, PUBLISHER)
    body = {"type": "completion", "prompt": "hi", "max_tokens": 4}
    before = await api.publish_prompt(lane, json.dumps(body | {"id": "before"}).encode(), msg_id="before")
    claim = Claim(worker="lost-1", prompt=before.seq + 1, num_attempts=3, at=time.time())
    await worker.put_claim(RequestKey(tenant_owner(PUBLISHER), "poison"), claim, expected_seq=0)
    await api.publish_prompt(lane, json.dumps(body | {"id": "poison"}).encode(), msg_id="poison")
    await worker.close()
    await api.close()
