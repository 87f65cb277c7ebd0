"""The page at `/`: its policy, and what a user does with it, in a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator

import pytest

from .browser import CHROMIUM, Page, browser
from .harness import Server, language_server
from .language_model import SLOW_AT


def test_the_page_is_whole_and_its_policy_strict(served: Server) -> None:
    key, served.key = served.key, ""
    try:
        answer = served.get("/")
    finally:
        served.key = key
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8"), "without a key: it says nothing"
    policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
    html = answer.body.decode()
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert not re.search(r"https?://|\bon\w+=|style=", html), "nothing from elsewhere, and nothing that the policy forbids"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert len(html) < 32_000


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt install chromium")
    with browser() as found:
        yield found


@pytest.mark.slow
def test_a_user_chats_completes_and_embeds(page: Page) -> None:
    with language_server() as server:
        page.said.clear()
        page.open(f"http://{server.address}/")
        page.wait("document.getElementById('state').textContent === 'ready'")
        assert page.text("#models td:first-child") == ["null", "encoder"]
        assert page.value("document.getElementById('key-label').hidden")
        assert page.text("#model option") == ["null"]

        page.fill("temperature", "0")
        page.fill("max-tokens", "20")
        page.fill("input", "hello")
        page.click("send")
        page.wait("document.getElementById('note').textContent.includes('20 tokens')")
        body = {"model": "null", "temperature": 0, "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]}
        answer = server.request("POST", "/v1/chat/completions", body).json()["choices"][0]["message"]
        assert page.text(".message") == ["hello", answer["content"]]
        page.fill("input", "and <b>then</b>?")
        page.click("send")
        page.wait("document.querySelectorAll('.message').length === 4 && !document.getElementById('send').disabled")
        body["messages"] += [answer, {"role": "user", "content": "and <b>then</b>?"}]  # type: ignore[operator]
        expected = server.request("POST", "/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
        assert page.text(".message")[2:] == ["and <b>then</b>?", expected], "the conversation goes on"
        assert not page.text(".message b")

        page.click("clear")
        page.fill("mode", "completion")
        page.fill("input", "the quick brown")
        page.click("send")
        page.wait("document.getElementById('note').textContent.includes('20 tokens') && document.querySelectorAll('.message').length === 2")
        body = {"model": "null", "temperature": 0, "max_tokens": 20, "prompt": "the quick brown"}
        assert page.text(".message")[1] == server.request("POST", "/v1/completions", body).json()["choices"][0]["text"]

        page.click("clear")
        page.fill("mode", "embedding")
        assert page.text("#model option") == ["encoder"]
        page.fill("input", "cat\ndog")
        page.click("send")
        page.wait("document.querySelectorAll('.message').length === 2")
        assert [text.split("\n")[0] for text in page.text(".message")] == ["cat", "dog"]
        assert all("1.000" in text for text in page.text(".message"))

        page.wait("document.getElementById('line').getAttribute('points').split(' ').length >= 2")
        page.wait("Number(document.querySelector('#models tr td:nth-child(4)').textContent) >= 5")
        own = [f"http://{server.address}/", "data:", "about:"]
        said = [each for each in page.said if not any(each.startswith(f"request {place}") for place in own)]
        assert said == [], "no errors, and no requests elsewhere"


@pytest.mark.slow
def test_a_generation_comes_in_pieces_and_can_be_stopped(page: Page) -> None:
    with language_server() as server:
        page.open(f"http://{server.address}/")
        page.wait("document.getElementById('state').textContent === 'ready'")
        page.fill("mode", "completion")
        page.fill("max-tokens", "400")
        # Each step takes 20 ms where the prompt holds this token; a text of it keeps the model slow for a while.
        slow = server.request("POST", "/v1/completions", {"model": "null", "prompt": [SLOW_AT], "max_tokens": 1, "echo": True}).json()
        page.fill("input", slow["choices"][0]["text"] + " hello")
        page.value(
            "window.lengths = new Set();"
            "const note = () => window.lengths.add(document.querySelectorAll('.message')[1]?.textContent.length);"
            "const wanted = {subtree: true, childList: true, characterData: true};"
            "new MutationObserver(note).observe(document.getElementById('transcript'), wanted)"
        )
        page.click("send")
        page.wait("document.querySelectorAll('.message').length === 2 && document.querySelectorAll('.message')[1].textContent.length > 3")
        page.click("stop")
        page.wait("!document.getElementById('send').disabled")
        assert page.value("window.lengths.size") > 1, "the text grew"
        page.fill("temperature", "9")
        page.fill("max-tokens", "0")
        page.fill("input", "hello")
        page.click("send")
        page.wait("document.querySelectorAll('.message.failed').length > 0 && !document.getElementById('send').disabled")
        assert "max_tokens" in page.text(".message.failed")[-1]


@pytest.mark.slow
def test_a_key_is_asked_for_where_it_is_needed(page: Page) -> None:
    with language_server(api_keys=["right"], root_path="/models") as server:
        page.open(f"http://{server.address}/models/")
        page.wait("!document.getElementById('key-label').hidden")
        assert "API key" in page.text("#state")[0]
        assert page.text("#models tr") == []
        page.fill("key", "right")
        page.wait("document.getElementById('state').textContent === 'ready'")
        assert page.text("#models td:first-child") == ["null", "encoder"]
        page.fill("input", "hello")
        page.fill("max-tokens", "3")
        page.click("send")
        page.wait("document.getElementById('note').textContent.includes('3 tokens')")
