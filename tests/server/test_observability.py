"""What deploy/observability queries exists, and its files are what their programs take."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmos.runtime.server.core.metrics import Metrics

FOLDER = Path(__file__).parents[2] / "deploy" / "observability"
_NAME = re.compile(r"\b(?:llmos|process)_\w+")
_LABELS = re.compile(r"by \(([^)]*)\)")
_MATCHED = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
_OF_A_SCRAPE = {"job", "instance"}


def exported() -> tuple[set[str], set[str]]:
    """The names of all series that a server has, and their labels."""
    names, labels = set(), {"le"} | _OF_A_SCRAPE
    for family in Metrics().registry.collect():
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + end for end in ends}
    for value in vars(Metrics()).values():
        labels |= set(getattr(value, "_labelnames", ()))
    return names, labels


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "llmos.rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard()["templating"]["list"]:
        yield variable["query"]
    yield from (rule["expr"] for rule in rules())


def test_queries_name_only_what_there_is() -> None:
    names, labels = exported()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    found = list(queries())
    assert len(found) > 30
    for query in found:
        assert set(_NAME.findall(re.sub(r"llmos:[\w:]+", "", query))) <= names, query
        assert set(re.findall(r"llmos:[\w:]+", query)) <= recorded, query
        used = {label.strip() for group in _LABELS.findall(query) for label in group.split(",")} | set(_MATCHED.findall(query))
        assert used <= labels, query


def test_every_histogram_of_requests_has_a_panel() -> None:
    names, _ = exported()
    text = " ".join(queries())
    missing = [name for name in names if name.endswith("_seconds_bucket") and name.startswith("llmos_") and name not in text]
    assert missing in ([], ["llmos_batch_run_time_seconds_bucket"])


def test_panels_stand_apart() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard()["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(places)


def test_the_collector_joins_what_it_defines() -> None:
    found = yaml.safe_load((FOLDER / "otel-collector.yaml").read_text())
    for pipeline in found["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(found[kind])
    assert found["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].endswith(":4317")


@pytest.mark.parametrize(
    "arguments", [("check", "rules", "llmos.rules.yml"), ("check", "config", "prometheus.yml"), ("test", "rules", "llmos.rules.test.yml")]
)
def test_promtool_takes_the_rules(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    done = subprocess.run([promtool, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
