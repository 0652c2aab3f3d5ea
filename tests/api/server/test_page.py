"""The page as a person meets it: in a real browser, over a live server."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.browser import MISSING, Browser, has_browser
from tests.helpers.families import FAMILIES
from tests.helpers.live import LiveServer

PAGE = Path(__file__).parents[3] / "ockham/api/server/page/page.html"
MOST_BYTES = 150_000
HOSTILE = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>"

needs_browser = pytest.mark.skipif(not has_browser(), reason=MISSING)


def test_it_is_one_small_file_with_nothing_from_elsewhere() -> None:
    text = PAGE.read_text()
    assert len(text.encode()) < MOST_BYTES
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    assert not re.search(r"\son\w+=", text.partition("<script>")[0])
    assert "innerHTML" not in text
    assert "style=" not in text


def test_only_its_own_script_may_run(server: LiveServer) -> None:
    answer = server.get("/")
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/=]+'", policy)
    assert answer.headers["content-type"].startswith("text/html")
    again = server.get("/", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_its_colours_can_be_told_apart() -> None:
    """Texts have a contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3), parts of pictures 3 to 1."""
    for theme in re.findall(r":root(?:\[[^]]*\])? \{([^}]*)\}", PAGE.read_text()):
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", theme))
        for text in ("text", "soft", "bad", "accent"):
            for back in ("back", "panel"):
                assert _contrast(colours[text], colours[back]) >= 4.5, (text, back, theme)
        for back in ("own", "code", "low", "middle"):
            assert _contrast(colours["text"], colours[back]) >= 4.5, (back, theme)
        assert _contrast(colours["on-accent"], colours["accent"]) >= 4.5
        for part in ("cached", "computed", "wasted"):
            assert _contrast(colours[part], colours["back"]) >= 3.0, (part, theme)


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def paged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("page")
    template = directory / "template.jinja"
    template.write_text(FAMILIES["hermes"].template)
    flags = (*TINY_FLAGS, "--served-model-name", "tiny", "--chat-template", str(template))
    flags += ("--enable-in-reasoning",)  # so that what it is to say may hold a thought
    with LiveServer(tiny, directory, *flags) as live:
        yield live


def saying(text: str) -> str:
    """The settings' further fields that make the model say a text."""
    return json.dumps({"structured_outputs": {"choice": [text]}})


@needs_browser
def test_what_a_model_says_is_text(paged: LiveServer, browser: Browser) -> None:
    browser.open(paged.url)
    said = f"# Title\n\n{HOSTILE}\n\n- **one**\n- `two`\n\n```html\n{HOSTILE}\n```\n"
    said += "[x](javascript:alert(1))"
    browser.settings(extra=saying(said))
    browser.say("hello <b>there</b>")
    assert HOSTILE in browser.answers()[0]
    assert browser.all(".message script, .message img, .message b, .message a") == []
    assert [each.text for each in browser.all(".body li")] == ["one", "two"]
    assert browser.text(".body pre") == HOSTILE
    assert browser.text(".message.user .body") == "hello <b>there</b>"
    assert browser.script("return window.hurt") is None


@needs_browser
def test_branches_cost_their_suffix_only(paged: LiveServer, browser: Browser) -> None:
    browser.open(paged.url)
    browser.settings(max="12", temperature="1", seed="3")
    browser.say("Tell me something that is long enough to be kept.")
    browser.click(".tools button", "Tokens")
    tokens = [each.text for each in browser.all(".token[role=button]")]
    assert len(tokens) == 12
    browser.script("document.querySelectorAll('.token[role=button]')[6].click()")
    assert len(browser.all("#choices tr")) == 5
    browser.click("#choices button", "Go on from here")
    browser.answered()
    assert browser.text(".message.assistant .tools").count("2 / 2") == 1
    browser.click(".message.assistant .tools button", "Tokens")
    assert [each.text for each in browser.all(".token[role=button]")][:6] == tokens[:6]
    browser.click(".message.assistant .tools button", "Bill")
    bill = browser.text(".bill")
    reused, computed = map(int, re.findall(r"(\d+) (?:reused|computed)", bill)[:2])
    assert computed == 1, bill
    assert reused > 6
    browser.click("button[aria-label='Earlier branch']")
    browser.until(lambda: "1 / 2" in browser.text(".message.assistant .tools"))
    browser.click(".message.assistant .tools button", "Again")
    browser.answered()
    assert "3 / 3" in browser.text(".message.assistant .tools")


@needs_browser
def test_thoughts_calls_and_files(paged: LiveServer, browser: Browser, tmp_path: Path) -> None:
    call = '{"name": "now", "arguments": {"zone": "Paris"}}'
    call = f"<think>\nhm\n</think>\n\n<tool_call>\n{call}\n</tool_call>"
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]
    notes = tmp_path / "notes.txt"
    notes.write_text("bread, milk")
    browser.open(paged.url)
    browser.settings(extra=saying(call), tools=json.dumps(tools))
    browser.one("#attach-file").send_keys(str(notes))
    browser.until(lambda: browser.all("#files .chip"))
    browser.say("What time is it?")
    assert browser.text(".message.user .chip") == "notes.txt"
    assert "hm" in browser.script("return document.querySelector('.thought').textContent")
    assert "Calls now" in browser.text(".call")
    assert '"zone": "Paris"' in browser.text(".call pre")
    browser.settings(extra=saying("It is noon."))
    browser.one(".call input").send_keys("12:00")
    browser.click(".call button", "Send result")
    browser.answered()
    assert browser.answers()[-1] == "It is noon."


@needs_browser
def test_chats_and_settings_stay_in_the_browser(paged: LiveServer, browser: Browser) -> None:
    browser.open(paged.url)
    browser.settings(max="6", system="Be short.")
    browser.say("first")
    browser.click("#new")
    browser.say("second")
    browser.driver.refresh()
    browser.until(lambda: len(browser.all("#chats li")) == 2)
    assert browser.text(".message.user .body") == "second"
    browser.one("#find").send_keys("first")
    browser.until(lambda: len(browser.all("#chats li")) == 1)
    browser.click("#chats .open", "first")
    assert browser.text(".message.user .body") == "first"
    browser.click("#export")
    file = browser.downloads / "ockham-chats.json"
    browser.until(file.exists)
    assert len(json.loads(file.read_text())["chats"]) == 2
    browser.script("document.getElementById('find').value = ''")
    browser.one("#import-file").send_keys(str(file))
    browser.until(lambda: len(browser.all("#chats li")) == 4)


@needs_browser
def test_an_edit_is_a_branch_and_an_answer_can_be_stopped(
    paged: LiveServer, browser: Browser
) -> None:
    browser.open(paged.url)
    browser.settings(extra=json.dumps({"ignore_eos": True, "max_tokens": 6000}))
    browser.one("#text").send_keys("go\n")
    browser.until(lambda: browser.one("#stop").is_displayed())
    browser.until(lambda: "tokens/s" in browser.text(".message.assistant .tools"))
    browser.click("#stop")
    browser.answered()
    assert "stopped" in browser.text(".message.assistant .tools")
    paged.wait_idle()
    browser.settings(extra=json.dumps({"max_tokens": 4}))
    browser.click(".message.user .tools button", "Edit")
    field = browser.one(".message.user textarea")
    field.clear()
    field.send_keys("stay")
    browser.click(".message.user button", "Send as a branch")
    browser.answered()
    assert browser.text(".message.user .body") == "stay"
    assert "2 / 2" in browser.text(".message.user .tools")


@needs_browser
@pytest.mark.parametrize("size", [(1200, 800), (360, 740)], ids=str)
def test_it_fits_both_sizes_in_both_themes(
    paged: LiveServer, browser: Browser, size: tuple[int, int]
) -> None:
    browser.driver.set_window_size(*size)
    browser.open(paged.url)
    browser.settings(max="8")
    browser.say("a" * 300)
    for _ in range(2):
        theme = browser.script("return document.documentElement.dataset.theme")
        for view in ("chat", "server"):
            browser.click(f"#to-{view}")
            browser.until(lambda: browser.all(".message, .card"))
            wide = browser.script(
                "return [...document.querySelectorAll('body *')].filter((each) => "
                "each.getBoundingClientRect().right > innerWidth + 1 && each.offsetParent)"
                ".map((each) => each.outerHTML.slice(0, 80))"
            )
            assert wide == [], (theme, view)
        browser.script("document.getElementById('theme').click()")
    assert browser.script("return document.documentElement.dataset.theme") != theme
    for control in browser.all("button, input:not([type=file]), select, textarea"):
        named = control.accessible_name
        assert named or not control.is_displayed(), control.get_attribute("outerHTML")


@needs_browser
def test_a_question_that_failed_is_no_part_of_the_next_one(
    paged: LiveServer, browser: Browser
) -> None:
    browser.open(paged.url)
    browser.settings(max="4", extra='{"temperature": -1}')
    browser.say("this one is refused")
    assert "temperature" in browser.text("#note")
    browser.settings(extra='{"temperature": 0}')
    browser.script(
        "window.asked = []; const plain = window.fetch;"
        "window.fetch = (url, how) => { window.asked.push(how && how.body); "
        "return plain(url, how); }"
    )
    browser.say("and this one is not")
    questions = [each.text for each in browser.all(".message.user .body")]
    assert questions == ["this one is refused", "and this one is not"], "both stand in the chat"
    assert "2 / 2" not in browser.text("#log")
    bodies = [json.loads(body) for body in browser.script("return window.asked") if body]
    (asked,) = [body["messages"] for body in bodies if "messages" in body]
    assert asked == [{"role": "user", "content": "and this one is not"}]
    browser.click("#settings")
    browser.one("#o-tools").send_keys('{"a": 1}')
    browser.click("#o-save")
    assert "must be a list" in browser.text("#o-note")
    assert all("400" in line for line in browser.console())


@needs_browser
def test_the_server_is_shown_as_it_is(paged: LiveServer, browser: Browser) -> None:
    browser.open(paged.url)
    browser.settings(max="8")
    browser.say("something to be held in the tree of prefixes")
    browser.click("#to-server")
    browser.until(lambda: "Prefixes that are held" in browser.text("#server"))
    text = browser.text("#server")
    assert "0 running, 0 waiting" in text
    assert "Techniques that are on" in text
    assert "attention pattern" in text
    assert browser.all(".tree li")


@needs_browser
def test_a_key_is_asked_for_and_kept(tiny: Path, window: Browser, tmp_path: Path) -> None:
    browser = window
    with LiveServer(tiny, tmp_path, *TINY_FLAGS, "--api-key", "a key") as live:
        browser.driver.get(live.url)
        browser.until(lambda: "API key" in browser.text("#note"))
        browser.settings(key="a key")
        browser.until(lambda: browser.text("#model") not in ("", "no model"))
        assert browser.text("#note") == ""
        assert all("401" in line for line in browser.console())


@pytest.fixture
def behind_a_prefix(paged: LiveServer) -> Iterator[str]:
    """The address of the server behind a proxy that takes a prefix off."""

    async def forward(request: Request) -> StreamingResponse:
        client = httpx.AsyncClient(base_url=paged.url, timeout=60)
        path = "/" + request.path_params["path"]
        headers = {"content-type": request.headers.get("content-type", "")}
        asked = client.build_request(
            request.method, path, content=await request.body(), headers=headers
        )
        answer = await client.send(asked, stream=True)
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name in ("content-type", "content-security-policy", "x-request-id")
        }
        return StreamingResponse(answer.aiter_raw(), answer.status_code, kept)

    app = Starlette(routes=[Route("/some/where/{path:path}", forward, methods=["GET", "POST"])])
    proxy = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(proxy.serve()))
    thread.start()
    try:
        while not proxy.started:
            pass
        port = proxy.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/some/where/"
    finally:
        proxy.should_exit = True
        thread.join()


@needs_browser
def test_it_works_behind_a_path_prefix(behind_a_prefix: str, browser: Browser) -> None:
    browser.open(behind_a_prefix)
    browser.settings(max="4")
    browser.say("hello")
    assert browser.answers()
    assert browser.text("#note") == ""


@needs_browser
def test_of_several_models_one_is_chosen_and_loaded(
    tiny: Path, tmp_path: Path, browser: Browser
) -> None:
    table = {
        "one": str(tiny),
        "two": {"model": str(tiny), "max-model-len": 333},
        "vectors": {"model": str(tiny), "task": "embed"},
    }
    with LiveServer(None, tmp_path, "--models", json.dumps(table), *TINY_FLAGS) as live:
        browser.open(live.url)
        assert browser.text("#model").split("\n") == ["one (unloaded)", "two (unloaded)"]
        browser.click("#to-server")
        browser.until(lambda: "None were read yet." in browser.text("#server"))
        assert "None were drafted yet." in browser.text("#server")
        browser.driver.set_window_size(360, 740)
        shown, needed = browser.script(
            "const picker = document.querySelector('#model'), free = picker.cloneNode(true);"
            "free.style.cssText = 'max-width: none; flex: none; width: auto';"
            "picker.after(free);"
            "const widths = [picker.clientWidth, free.clientWidth];"
            "free.remove(); return widths"
        )
        assert shown >= needed, "the state of a model is not cut on a phone"
        browser.driver.set_window_size(1200, 800)
        browser.click("#to-chat")
        browser.script(
            "const model = document.querySelector('#model'); model.value = 'two';"
            "model.dispatchEvent(new Event('change'))"
        )
        browser.say("Hi")
        browser.until(lambda: "two (unloaded)" not in browser.text("#model"))
        assert browser.script("return document.querySelector('#model').value") == "two"
        browser.click("#to-server")
        browser.until(lambda: "Prefixes that are held" in browser.text("#server"))
        assert "one\tunloaded" in browser.text("#server")
        assert "two\tloaded" in browser.text("#server")
