"""A headless Chromium for tests of the page, by Debian's driver."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.helpers.live import wait_for

MISSING = "Chromium and its driver are not installed (Debian: chromium chromium-driver)"
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    "--window-size=1200,900",
)


def has_browser() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """One window."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads

    def open(self, url: str) -> None:
        """Open the page as it is for who comes for the first time."""
        self.driver.get(url)
        self.script("localStorage.clear()")
        self.driver.execute_async_script(
            "const done = arguments[0], opened = indexedDB.open('ockham', 1);"
            "opened.onsuccess = () => {"
            "const work = opened.result.transaction('chats', 'readwrite');"
            "work.objectStore('chats').clear(); work.oncomplete = () => done(); };"
        )
        self.driver.refresh()
        wait_for(lambda: self.all("#model option"), 20)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        (found,) = self.all(selector)
        return found

    def text(self, selector: str) -> str:
        """What the only such element says at this moment: the page may draw it anew at any."""
        found = self.script(
            "return [...document.querySelectorAll(arguments[0])].map((each) => each.innerText)",
            selector,
        )
        (text,) = found
        return str(text)

    def click(self, selector: str, text: str | None = None) -> None:
        """Click the last that there is, or the last that says `text`."""
        found = [each for each in self.all(selector) if text is None or each.text == text]
        assert found, f"nothing at {selector} says {text}"
        found[-1].click()

    def script(self, text: str, *values: Any) -> Any:
        return self.driver.execute_script(text, *values)

    def until(self, condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
        return wait_for(condition, timeout_s)

    def say(self, text: str, timeout_s: float = 60.0) -> None:
        """Send a message, and wait for the end of its answer."""
        self.one("#text").send_keys(text, Keys.ENTER)
        self.answered(timeout_s)

    def answered(self, timeout_s: float = 60.0) -> None:
        self.until(lambda: self.one("#send").is_enabled(), timeout_s)

    def answers(self) -> list[str]:
        found: list[str] = self.script(
            "return [...document.querySelectorAll('.message.assistant .body')]"
            ".map((each) => each.innerText)"
        )
        return found

    def settings(self, **fields: str) -> None:
        """Fill in fields of the settings by their ids, without the o-."""
        self.click("#settings")
        for name, value in fields.items():
            field = self.one(f"#o-{name.replace('_', '-')}")
            field.clear()
            field.send_keys(value)
        self.click("#o-save")

    def console(self) -> list[str]:
        """What went wrong, as the console says it."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]


@contextmanager
def browsing(downloads: Path) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or ""))
    try:
        yield Browser(driver, downloads)
    finally:
        driver.quit()
