"""What the page must not lose, and what must not stop it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.browser import MISSING, Browser, has_browser
from tests.helpers.live import LiveServer

pytestmark = pytest.mark.skipif(not has_browser(), reason=MISSING)

LONG = json.dumps({"ignore_eos": True, "max_tokens": 6000})


def begin_long(browser: Browser, text: str) -> None:
    """Send a message, and come back when its answer has begun."""
    browser.settings(extra=LONG)
    browser.one("#text").send_keys(text + "\n")
    browser.until(lambda: "tokens/s" in browser.text(".message.assistant .tools"))


def test_a_question_outlives_a_page_that_is_closed(talking: LiveServer, browser: Browser) -> None:
    browser.open(talking.url)
    begin_long(browser, "do not lose me")
    browser.driver.refresh()
    browser.until(lambda: browser.all(".message.assistant"))
    assert browser.text(".message.user .body") == "do not lose me"
    said = browser.text(".message.assistant")
    assert "stopped after" in said or "the page was closed" in said
    talking.wait_idle()
    browser.settings(extra='{"max_tokens": 4}')
    browser.click(".message.assistant .tools button", "Again")
    browser.answered()
    assert "2 / 2" in browser.text(".message.assistant .tools")


def test_what_was_deleted_does_not_come_back(talking: LiveServer, browser: Browser) -> None:
    browser.open(talking.url)
    begin_long(browser, "delete me")
    browser.click("#chats button[aria-label^=Delete]")
    browser.driver.switch_to.alert.accept()
    browser.answered()
    talking.wait_idle()
    browser.driver.refresh()
    browser.until(lambda: browser.all("#model option"))
    assert "delete me" not in browser.text("#chats")


def test_a_file_of_chats_cannot_stop_the_page(
    talking: LiveServer, browser: Browser, tmp_path: Path
) -> None:
    def chat(**changed: Any) -> dict[str, Any]:
        user = {"id": "u", "parent": "root", "children": [], "shown": 0, "role": "user"}
        nodes = {"root": {"id": "root", "children": ["u"], "shown": 0}}
        nodes["u"] = {**user, "content": "from a file", **changed}
        return {"title": "kept", "nodes": nodes}

    answer = {"role": "assistant", "tokens": []}
    wrong = [
        None,
        {"title": "no children", "nodes": {"root": {}}},
        chat(children=["u"]),
        chat(children=["nobody"]),
        chat(role="constructor"),
        chat(content=3),
        chat(files=[None]),
        chat(**answer, timings={}),
        chat(**answer, usage={"ockham": {}}),
    ]
    file = tmp_path / "chats.json"
    file.write_text(json.dumps({"format": "ockham-chats-1", "chats": [*wrong, chat()]}))
    browser.open(talking.url)
    browser.one("#import-file").send_keys(str(file))
    browser.until(lambda: "9 of the 10 chats" in browser.text("#note"))
    browser.driver.refresh()
    browser.until(lambda: browser.all("#model option"))
    assert browser.text(".message.user .body") == "from a file"
    file.write_text("null")
    browser.one("#import-file").send_keys(str(file))
    browser.until(lambda: "holds no chats" in browser.text("#note"))


def test_settings_that_cannot_be_right_are_not_kept(talking: LiveServer, browser: Browser) -> None:
    browser.open(talking.url)
    browser.settings(temperature="-3")
    assert browser.one("#options").is_displayed(), "the browser says what is wrong"
    browser.click("#options button", "Cancel")
    assert not browser.one("#options").is_displayed()
    browser.click("#settings")
    assert browser.one("#o-temperature").get_property("value") == ""
    browser.click("#options button", "Cancel")


def test_the_chats_can_be_put_away_on_a_phone(talking: LiveServer, browser: Browser) -> None:
    browser.driver.set_window_size(500, 800)
    browser.open(talking.url)
    side = browser.one("#side")
    for put_away in ("document.querySelector('#hide')", "document.querySelector('#log')"):
        browser.click("#menu")
        browser.until(side.is_displayed)
        browser.until(lambda: side.rect["x"] == 0)
        browser.script(f"{put_away}.click()")
        browser.until(lambda: not side.is_displayed())
    assert browser.one("#menu").get_attribute("aria-expanded") == "false"


def test_an_answer_is_copied_without_a_clipboard(talking: LiveServer, browser: Browser) -> None:
    """As on a page of plain HTTP from another machine, which has no navigator.clipboard."""
    browser.open(talking.url)
    browser.settings(extra='{"max_tokens": 1}')
    browser.say("copy this")
    browser.script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    browser.script("document.addEventListener('copy', () => { window.copied = true })")
    browser.click(".message.user .tools button", "Copy")
    browser.until(lambda: "Copied" in browser.text(".message.user .tools"))
    assert browser.script("return window.copied")
    browser.one("#text").send_keys("\ue009v\ue000")
    assert browser.one("#text").get_property("value") == "copy this"


def test_two_tabs_keep_what_each_adds_to_a_chat(talking: LiveServer, browser: Browser) -> None:
    browser.open(talking.url)
    browser.settings(extra='{"max_tokens": 2}')
    browser.say("the beginning")
    tabs = browser.driver.switch_to
    first = browser.driver.current_window_handle
    tabs.new_window("tab")
    try:
        browser.driver.get(talking.url)
        browser.until(lambda: browser.all("#model option"))
        browser.say("from the second tab")
    finally:
        browser.driver.close()
        tabs.window(first)
    browser.say("from the first tab")
    browser.driver.refresh()
    browser.until(lambda: browser.all("#model option"))
    assert "from the first tab" in browser.text("#log")
    assert "1 / 2" in browser.text("#log")
    browser.click(".message.user button[aria-label='Later branch']")
    assert "from the second tab" in browser.text("#log")


def test_a_bill_takes_neither_an_edit_nor_the_focus(talking: LiveServer, browser: Browser) -> None:
    browser.open(talking.url)
    browser.settings(extra='{"max_tokens": 2}')
    browser.say("to be edited")
    browser.click(".message.user .tools button", "Edit")
    browser.one(".message.user textarea").send_keys(", at length")
    browser.click(".message.assistant .tools button", "Bill")
    assert browser.all(".bill")
    edited = browser.one(".message.user textarea").get_property("value")
    assert edited == "to be edited, at length"
    assert browser.script("return document.activeElement.textContent") == "Bill"
