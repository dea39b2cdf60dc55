"""Chromium, as the tests of the page use it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PICTURES: Final = Path(__file__).resolve().parents[3] / "build" / "page"
_OPTIONS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--force-device-scale-factor=1", "--lang=en",
)  # fmt: skip


def check_chromium() -> tuple[str, str]:
    """The browser and its driver. Skips if there is none; fails if that was wished for."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser and driver:
        return browser, driver
    message = "there is no Chromium: apt install chromium chromium-driver"
    if os.environ.get("BROWSER_NEEDED"):
        pytest.fail(message)
    pytest.skip(message)


@contextlib.contextmanager
def chromium(downloads: Path) -> Iterator[Browser]:
    """A browser without a history."""
    binary, driver_path = check_chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for option in _OPTIONS:
        options.add_argument(option)
    options.add_experimental_option("prefs", {"profile.default_content_setting_values.automatic_downloads": 1})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    where = {"behavior": "allow", "downloadPath": str(downloads)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    try:
        yield Browser(driver, downloads)
    finally:
        driver.quit()


@dataclass(frozen=True, slots=True)
class Browser:
    """What the tests do with the page, and see of it."""

    driver: Any
    downloads: Path

    def open(self, url: str) -> None:
        """Opens the page and waits until it is ready."""
        self.driver.get(url)
        self.until(lambda: self.one("#state").text or self.all("dialog[open]"))

    def all(self, selector: str) -> list[Any]:
        """The elements that a CSS selector finds."""
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def one(self, selector: str) -> Any:
        """The first of them."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        """Clicks on the last element that a selector finds."""
        self.do("arguments[0].click()", self.all(selector)[-1])

    def do(self, script: str, *arguments: Any) -> Any:
        """Runs a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def type(self, *keys: str) -> None:
        """Types where the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def chord(self, held: str, key: str) -> None:
        """Types a key while another is held."""
        ActionChains(self.driver).key_down(held).send_keys(key).key_up(held).perform()

    def ask(self, question: str) -> None:
        """Types a question and sends it."""
        self.one("#question").send_keys(question, Keys.ENTER)

    def until(self, fact: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Waits for a fact. Returns it."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(NoSuchElementException, StaleElementReferenceException, IndexError):
                if found := fact():
                    return found
            assert time.monotonic() < end, self.all("body")[0].text
            time.sleep(0.03)

    @property
    def runs(self) -> bool:
        """Whether an answer is coming."""
        return bool(self.all("#ask.runs"))

    def ended(self) -> None:
        """Waits for the end of the answer."""
        self.until(lambda: not self.runs and self.all(".answer[aria-busy=false]"))

    def answer(self) -> str:
        """The text of the last answer."""
        return str(self.all(".answer > .text")[-1].text)

    def faults(self) -> list[str]:
        """What the page has logged as faults since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Gives the window a size, and the page light or dark colours."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def picture(self, name: str) -> None:
        """Takes a picture of the window into `build/page`."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        time.sleep(0.3)  # transitions
        self.driver.save_screenshot(str(PICTURES / f"{name}.png"))

    def new_tab(self, url: str) -> str:
        """Opens the page in another tab, and gives the tab before."""
        before = str(self.driver.current_window_handle)
        self.driver.switch_to.new_window("tab")
        self.open(url)
        return before

    def turn_to(self, tab: str) -> None:
        """Shows a tab."""
        self.driver.switch_to.window(tab)


__all__ = ["PICTURES", "Browser", "Keys", "chromium"]
