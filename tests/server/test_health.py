"""The health matrix: each rule driven over its threshold and back on a real server, and what its file may say."""

from __future__ import annotations

import http.client
import http.server
import json
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.runtime.errors import UserError
from llmos.runtime.server.core.health import webhook
from llmos.runtime.server.core.health.matrix import Matrix
from llmos.runtime.server.core.health.monitor import HealthMonitor
from llmos.runtime.server.core.health.rules import HealthRules
from llmos.runtime.server.core.health.signals import Signals, client_key
from llmos.runtime.server.core.health.webhook import Webhook
from llmos.runtime.server.core.language import load_served
from llmos.runtime.server.core.metrics import Metrics
from llmos.runtime.server.core.registry import Registry
from llmos.runtime.server.core.repository import Repository
from llmos.runtime.server.core.served import Builder
from llmos.runtime.server.core.settings import ServerSettings

from ..cli_runtime.artifacts import affine_artifact  # noqa: TID252
from .harness import Answer, Server, affine_body, language_server, numpy_server, running, wait_for
from .language_model import FAILS_AT, SLOW
from .test_artifacts import COMMAND

OTHER = "127.0.0.2"  # an address of this machine that the other tests don't use
PERIOD_S = 1.5

RULES = f"""
interval_s: 0.02
window_s: 1
long_input_tokens: 40
least_requests: 4
period_s: {PERIOD_S}
rules:
  - name: too-slow
    when: {{latency_p50_s: "> 0.1", requests_per_s: "> 2"}}
    action: {{degrade: {{max_tokens: 2, max_delay_ms: 0}}}}
  - name: long-inputs
    when: {{long_input_share: "> 0.3"}}
    action: {{filter: {{max_input_tokens: 40}}}}
  - name: worse-answers
    when: {{score_drop: "> 0.15"}}
    action: roll_back
  - name: worse-answers-too  # both go back one version, not one each
    when: {{score_drop: "> 0.15"}}
    action: roll_back
  - name: abuse
    when: {{bad_requests_per_min: "> 20"}}
    action: {{ban: {{seconds: 1}}}}
  - name: only-said
    when: {{memory_bytes: "> 1"}}
    action: {{degrade: {{max_tokens: 1}}}}
    dry_run: true
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("repository")
    for version in ("1", "2", "3"):
        file = folder / "graded" / version / "model.llmos"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    with language_server(health=RULES, admin=True, repository=str(folder), response_cache_bytes=1 << 20) as server:
        yield server


def matrix(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = admin(server, "GET", "/v2/health/matrix").json()
    return found


def admin(server: Server, method: str, path: str, body: object = b"") -> Answer:
    return server.request(method, path, body, port=server.admin_port)


def acts(server: Server, rule: str) -> bool:
    return rule in matrix(server)["active"]


def events(server: Server, rule: str) -> list[dict[str, Any]]:
    return [event for event in matrix(server)["events"] if event["rule"] == rule]


def complete(server: Server, prompt: str = "the cat", **more: Any) -> Answer:
    bias = {str(FAILS_AT): -100, **more.pop("logit_bias", {})}
    body = {"model": "null", "prompt": prompt, "max_tokens": 8, "ignore_eos": True, "logit_bias": bias, **more}
    return server.request("POST", "/v1/completions", body)


def count(answer: Answer) -> int:
    found: int = answer.json()["usage"]["completion_tokens"]
    return found


def check_told(server: Server, rule: str, action: str, *states: str) -> None:
    """Each state of a rule is an event, a metric and a line of the log."""
    assert [event["state"] for event in events(server, rule)][: len(states)] == list(states)
    for state in states:
        labels = f'action="{action}",dry_run="false",rule="{rule}",state="{state}"'
        assert server.metric(f"llmos_health_actions_total{{{labels}}}") >= 1
        assert [line for line in server.log if f"health rule {rule}: {action} {state}s" in line]


def test_a_slow_busy_server_generates_less(watched: Server) -> None:
    assert count(complete(watched)) == 8
    shorter = False
    for _ in range(20):  # a machine that stands still for a second has seen nothing
        with ThreadPoolExecutor(4) as pool:  # tokens that take 20 ms each
            answers = list(pool.map(lambda _: complete(watched, logit_bias=SLOW), range(4)))
        assert all(answer.status == 200 for answer in answers)
        shorter = shorter or count(complete(watched, seed=1)) == 2
        if shorter:
            break
    assert shorter
    wait_for(lambda: not acts(watched, "too-slow"))
    assert count(complete(watched, seed=1)) == 8, "what was shorter for a while is not kept"
    check_told(watched, "too-slow", "degrade", "begin", "end")


def test_many_long_inputs_are_filtered(watched: Server) -> None:
    long = "the cat sat " * 40
    assert complete(watched, long).status == 200
    refused = 0
    for _ in range(100):
        answer = complete(watched, long)
        if answer.status == 503:
            assert "retry-after" in answer.headers
            assert "more than 40 tokens" in answer.json()["error"]["message"]
            refused += 1
            break
    assert refused
    assert complete(watched).status == 200  # a short one
    answer = watched.request("POST", "/v1/embeddings", {"model": "encoder", "input": ["cat", "cat sat " * 40]})
    assert answer.status == 503 or not acts(watched, "long-inputs")
    wait_for(lambda: not acts(watched, "long-inputs"))
    assert complete(watched, long).status == 200
    check_told(watched, "long-inputs", "filter", "begin", "end")


def test_an_address_of_many_bad_requests_is_banned_for_a_while(watched: Server) -> None:
    def ask(path: str, address: str = OTHER) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", watched.port, timeout=60, source_address=(address, 0))
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response

    assert ask("/v1/models").status == 200
    for number in range(21):
        if number % 2:
            assert ask("/v1/none").status == 404
        else:  # no HTTP at all
            with socket.create_connection(("127.0.0.1", watched.port), 60, (OTHER, 0)) as connection:
                connection.sendall(b"nonsense\r\n\r\n")
                assert b" 400 " in connection.recv(100)
    wait_for(lambda: ask("/v1/models").status == 403)
    refused = ask("/v1/models")
    if refused.status == 403:  # a second is not over
        assert refused.headers["retry-after"] == "1"
    assert ask("/v2/health/live").status == 200  # probes are not banned
    assert watched.get("/v1/models").status == 200
    wait_for(lambda: ask("/v1/models").status == 200)
    wait_for(lambda: len(events(watched, "abuse")) >= 2)
    assert events(watched, "abuse")[0]["client"] == OTHER
    check_told(watched, "abuse", "ban", "begin", "end")


def test_errors_at_the_admin_port_are_no_clients() -> None:
    """The operator's mistakes, HTTP or not, ban nobody; neither are they refused where this address is banned."""
    rules = 'interval_s: 0.02\nrules: [{name: abuse, when: {bad_requests_per_min: "> 20"}, action: {ban: {seconds: 600}}}]'
    with numpy_server(admin=True, health=rules) as server:
        for _ in range(30):
            assert admin(server, "POST", "/nothing").status == 404
            assert admin(server, "POST", "/v2/health/scores", b"nonsense").status == 400
            with socket.create_connection(("127.0.0.1", server.admin_port)) as connection:
                connection.sendall(b"nonsense\r\n\r\n")
                assert b"400" in connection.recv(1000)
        looks = 'llmos_health_value{metric="bad_requests_per_min"}'
        assert server.get("/v1/models").status == 200
        assert server.metric(looks) == matrix(server)["metrics"]["bad_requests_per_min"] == 0
        for _ in range(30):
            server.get("/nothing")
        wait_for(lambda: server.get("/v1/models").status == 403)
        assert matrix(server)["active"] == ["abuse"]


def test_memory_is_that_of_isolated_models_too(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text('interval_s: 0.05\nrules: [{name: memory, when: {memory_bytes: "> 1e15"}, action: {degrade: {max_tokens: 1}}}]')
    artifact = affine_artifact(tmp_path / "affine.llmos")
    with running([*COMMAND, str(artifact), "--resource-policy", "isolated", "--health-rules", str(rules)]) as server:
        (worker,) = (pid for pid in descendants(server.process.pid) if "model_worker" in Path(f"/proc/{pid}/cmdline").read_text())
        own, other = resident_bytes_of(server.process.pid), resident_bytes_of(worker)
        assert other > 20 << 20
        wait_for(lambda: b"\nllmos_health_value{" in server.get("/metrics").body)
        assert server.metric('llmos_health_value{metric="memory_bytes"}') == pytest.approx(own + other, rel=0.2)


def descendants(pid: int) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return list(map(int, done.stdout.split()))


def resident_bytes_of(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def test_worse_answers_bring_the_earlier_version_back(watched: Server) -> None:
    def versions() -> list[str]:
        found: list[str] = watched.get("/v2/models/graded").json()["versions"]
        return found

    def rate(score: float) -> None:
        for _ in range(5):
            assert admin(watched, "POST", "/v2/health/scores", {"model": "graded", "score": score}).status == 200

    assert versions() == ["3"]
    for _ in range(20):
        rate(1.0)
        end_s = time.monotonic() + 1.9 * PERIOD_S
        while time.monotonic() < end_s and versions() == ["3"]:
            rate(0.5)
            time.sleep(0.02)
        if versions() == ["2"]:
            break
    assert versions() == ["2"]
    wait_for(lambda: len(events(watched, "worse-answers")) >= 2 and len(events(watched, "worse-answers-too")) >= 2)
    check_told(watched, "worse-answers", "roll_back", "begin", "end")
    check_told(watched, "worse-answers-too", "roll_back", "begin", "end")
    assert complete(watched, model="graded").status == 200


@pytest.mark.parametrize("body", [b"", b"[]", {"model": "graded"}, {"model": 3, "score": 1}, {"model": "graded", "score": -1}, b"NaN"])
def test_a_wrong_score_is_one_line(watched: Server, body: object) -> None:
    assert admin(watched, "POST", "/v2/health/scores", body).status == 400


def test_scores_are_of_models_that_there_are(watched: Server) -> None:
    assert admin(watched, "POST", "/v2/health/scores", {"model": "none", "score": 1}).status == 404
    assert watched.request("POST", "/v2/health/scores", {"model": "graded", "score": 1}).status == 404  # the operator's alone


def test_a_dry_run_says_what_it_would_do_and_does_nothing(watched: Server) -> None:
    wait_for(lambda: acts(watched, "only-said"))
    (event,) = events(watched, "only-said")
    assert (event["state"], event["dry_run"]) == ("begin", True)
    assert count(complete(watched)) == 8 or acts(watched, "too-slow")
    assert watched.metric('llmos_health_rule_active{action="degrade",rule="only-said"}') == 1
    assert [line for line in watched.log if "only-said: degrade begins (dry run)" in line]


def test_full_memory_asks_for_more_servers() -> None:
    taken: list[dict[str, Any]] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    hook = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    rules = f"""
interval_s: 0.02
memory_limit_bytes: {400 << 20}
webhook: http://127.0.0.1:{hook.server_address[1]}/scale
rules: [{{name: memory, when: {{memory_share: "> 0.5"}}, for_s: 0.2, action: scale_out}}]
"""

    def hold(num_mib: int) -> None:
        assert server.request("POST", "/v2/models/ballast/infer", affine_body([num_mib, 0, 0])).status == 200

    with numpy_server(health=rules, admin=True) as server:
        hold(250)
        wait_for(lambda: len(taken) == 1)
        assert (taken[0]["rule"], taken[0]["action"], taken[0]["state"]) == ("memory", "scale_out", "begin")
        assert taken[0]["memory_share"] > 0.5
        hold(1)
        wait_for(lambda: len(taken) == 2)
        assert taken[1]["state"] == "end"
        check_told(server, "memory", "scale_out", "begin", "end")
    hook.shutdown()


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 3)), max_size=30), st.floats(0, 5), st.floats(0, 5))
def test_a_rule_acts_once_it_has_held_for_its_time(steps: list[tuple[bool, float]], for_s: float, clear_s: float) -> None:
    rules = HealthRules.parse(
        f"rules: [{{name: a, when: {{requests_per_s: '> 1'}}, for_s: {for_s:.9f}, clear_s: {clear_s:.9f}, action: filter}}]"
    )
    (rule,) = rules.rules
    found = Matrix(rules.rules)
    now_s, active, history = 0.0, False, []
    for holds, step_s in steps:
        now_s += step_s
        history.append((now_s, holds))
        changes = found.step({"requests_per_s": 2.0 if holds else 0.0}, now_s)
        run = [at_s for at_s, _ in history[next((i + 1 for i in range(len(history) - 1, -1, -1) if history[i][1] != holds), 0) :]]
        if holds != active and now_s - run[0] >= (rule.clear_s if active else rule.for_s):
            active = holds
            assert [change.begins for change in changes] == [active]
        else:
            assert not changes
        assert bool(found.active) == active


WRONG = {
    "": "must be a mapping",
    "rules: []": "1 to 100 rules",
    "rules: 3": "1 to 100 rules",
    "rules: [&a {name: a}, *a]": "aliases",
    "rules: [{name: A}]": "'name' must be",
    "rules: [{name: a}]": "'when' must be a mapping",
    "rules: [{name: a, when: {}}]": "needs a condition",
    "rules: [{name: a, when: {speed: '> 1'}}]": "no metric 'speed'",
    "rules: [{name: a, when: {latency_p95_s: 1}}]": "such as '> 0.9'",
    "rules: [{name: a, when: {latency_p95_s: '> 1e999'}}]": "such as '> 0.9'",
    "rules: [{name: a, when: {latency_p95_s: '> 1'}}]": "'action' must be one of",
    "rules: [{name: a, when: {latency_p95_s: '> 1'}, action: fly}]": "'action' must be one of",
    "rules: [{name: a, when: {latency_p95_s: '> 1'}, action: degrade}]": "needs max_tokens",
    "rules: [{name: a, when: {latency_p95_s: '> 1'}, action: {degrade: {max_tokens: 0}}}]": "from 1 to",
    "rules: [{name: a, when: {latency_p95_s: '> 1'}, action: {degrade: {speed: 0}}}]": "no option 'speed'",
    "rules: [{name: a, when: {latency_p95_s: '> 1'}, action: ban}]": "bad_requests_per_min",
    "rules: [{name: a, when: {bad_requests_per_min: '< 1'}, action: ban}]": "bad_requests_per_min",
    "rules: [{name: a, when: {latency_p95_s: '> 1'}, action: roll_back}]": "score_drop",
    "rules: [{name: a, when: {latency_p95_s: '> 1'}, action: scale_out}]": "webhook",
    "rules: [{name: a, when: {latency_p95_s: '> 1'}, action: filter, for_s: soon}]": "for_s must be a number",
    "rules: [{name: a, when: {latency_p95_s: '> 1'}, action: filter, for_s: .nan}]": "for_s must be a number",
    "rules: [{name: a, when: {latency_p95_s: '> 1'}, action: filter, also: 1}]": "nothing named 'also'",
    "rules: [{name: a, when: {error_share: '> 1'}, action: filter}, {name: a, when: {error_share: '> 1'}, action: filter}]": "two rules",
    "{webhook: 'ftp://x', rules: [{name: a}]}": "must be a URL",
    "{window_s: 0, rules: [{name: a}]}": "window_s must be",
    "{dry_run: maybe, rules: [{name: a}]}": "true or false",
    "rules: [{name: a, when: {bad_requests_per_min: '> 1e300'}, action: ban}]": "such as '> 0.9'",
    "rules: [{name: a, when: {bad_requests_per_min: '> 1e6'}, action: ban}]": "at most 100,000",
    "a: [": "no YAML",
    "2026-99-99": "no YAML",
    "[" * 5000: "nested too deeply",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=WRONG[text].replace("(", r"\(")) as caught:
        HealthRules.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["''", "x", "[x]", "{x: y}"])
@pytest.mark.parametrize(
    "tag", ["!!int", "!!float", "!!bool", "!!timestamp", "!!binary", "!!null", "!!set", "!!python/name:os.system", "!a"]
)
def test_tags_are_refused(tag: str, value: str) -> None:
    with pytest.raises(UserError, match="tags are not supported"):
        HealthRules.parse(f"rules: {tag} {value}")


@pytest.mark.parametrize(("limit", "action"), [("0", "ban"), ("0.5", "ban"), ("3", "{degrade: {max_tokens: 1}}"), ("3000", "ban")])
def test_bad_requests_are_counted_for_every_rule(limit: str, action: str) -> None:
    rules = HealthRules.parse(f"rules: [{{name: bad, when: {{bad_requests_per_min: '> {limit}'}}, action: {action}}}]")
    clock = [0.0]
    monitor = HealthMonitor(
        rules, Registry([], Repository(), Builder(ServerSettings(), Metrics()), load_served), Metrics(), lambda: clock[0]
    )
    for _ in range(int(float(limit))):
        monitor.observe_answer(404, OTHER)
    monitor.look()
    assert not monitor.report()["active"]
    monitor.observe_answer(404, OTHER)
    monitor.look()
    assert monitor.report()["active"] == ["bad"]
    assert bool(monitor.report()["banned"]) == (action == "ban")


def test_a_webhook_that_speaks_no_http_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "_PAUSES_S", (0.0,))
    failures: queue.Queue[int] = queue.Queue()
    answers = [b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n", b""]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hook = Webhook(f"http://127.0.0.1:{listener.getsockname()[1]}/", lambda: failures.put(1))
        for answer in answers:
            hook.send({})
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
            failures.get(timeout=10)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for whole in (text, f"rules: [{{name: a, when: {{requests_per_s: '{text}'}}, action: filter}}]"):
        try:
            HealthRules.parse(whole)
        except UserError as error:
            assert "\n" not in str(error)


def test_a_missing_or_huge_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't read"):
        HealthRules.read(tmp_path / "none")
    (tmp_path / "huge").write_bytes(b"#" * (300 << 10))
    with pytest.raises(UserError, match="64 KiB"):
        HealthRules.read(tmp_path / "huge")


def test_scores_of_a_week_are_compared_with_those_of_the_week_before() -> None:
    week_s = 7 * 24 * 3600.0
    signals = Signals(60, 5000, week_s, 20)
    for hour in range(2 * 168):
        for model, late in (("same", 0.9), ("worse", 0.7), ("better", 1.0)):
            signals.add_score(hour * 3600.0 + 1, model, 0.9 if hour < 168 else late)
    now_s = 2 * week_s - 1
    assert signals.models_above(0.15, now_s) == ["worse"]
    assert signals.values(now_s)["score_drop"] == pytest.approx(1 - 0.7 / 0.9, abs=0.01)
    assert signals.models_above(0.15, now_s + 2 * week_s) == []


def test_shares_of_few_requests_are_none() -> None:
    signals = Signals(60, 5000, 1e6, 20)
    for _ in range(19):
        signals.add_request(1.0, 0.1, 500, 9000)
    assert (signals.values(2.0)["error_share"], signals.values(2.0)["long_input_share"]) == (0, 0)
    signals.add_request(1.0, 0.1, 200, 1)
    assert (signals.values(2.0)["error_share"], signals.values(2.0)["long_input_share"]) == (0.95, 0.95)
    assert signals.values(62.0)["error_share"] == 0


@pytest.mark.parametrize("rate", [5, 100, 3000])
def test_a_rate_is_right_also_where_not_all_requests_are_kept(rate: int) -> None:
    signals = Signals(60, 5000, 1e6, 20)
    for number in range(70 * rate if rate < 1000 else 20 * rate):
        signals.add_request(number / rate, 0.1 if number % 10 else 0.9, 200, 1)
    values = signals.values((number + 1) / rate)
    expected = rate if rate < 1000 else max(rate, 20 * rate / 60)
    assert values["requests_per_s"] == pytest.approx(expected, rel=0.01)
    assert (values["latency_p50_s"], values["latency_p95_s"]) == (0.1, 0.9)


def test_clients_are_bounded_and_known_by_their_network() -> None:
    assert client_key("2001:db8::1") == client_key("2001:db8::ffff:0:1") != client_key("2001:db8:0:1::1")
    assert client_key("%5B2001:db8::1%5D") == client_key("[2001:db8::1]") == client_key("2001:db8::1")
    assert client_key("10.0.0.1") != client_key("10.0.0.2")
    signals = Signals(60, 5000, 1e6, 20)
    for number in range(30_000):
        signals.add_answer(1.0, str(number), 404, 10)
    for _ in range(1000):
        signals.add_answer(1.0, "attacker", 400, 101)
    assert signals.clients_above(100, 1.5) == ["attacker"]
    assert len(signals._bad) <= 4_096
    assert signals.clients_above(100, 62.0) == []
