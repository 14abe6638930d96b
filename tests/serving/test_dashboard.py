"""The Grafana dashboard and the alert rules ask for metrics and labels that the service has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import prometheus_client
import pytest
import yaml

from serving.metrics import Metrics
from tests.serving.conftest import ROOT, Service

DASHBOARD = ROOT / "deploy" / "grafana" / "augmint.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
# Given by Prometheus to whatever it scrapes, and by a histogram's buckets.
THEIRS = {"job", "instance", "le"}


def asked() -> Iterator[str]:
    """Every expression of both files."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def names(expression: str) -> set[str]:
    return set(re.findall(r"\baugmint_\w+", expression))


def labels(expression: str) -> set[str]:
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    grouped = [part.strip() for inner in re.findall(r"\bby \(([^)]*)\)", expression) for part in inner.split(",")]
    return {*matched, *grouped}


@pytest.fixture(scope="module")
def offered() -> dict[str, set[str]]:
    """Every sample that the service can have, with its labels."""
    registry = prometheus_client.CollectorRegistry()
    metrics = Metrics(registry)
    found: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        if not isinstance(metric, prometheus_client.metrics.MetricWrapperBase):
            continue
        (family,) = metric.describe()
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}[family.type]
        found |= {family.name + ending: set(metric._labelnames) for ending in endings}
    return found


@pytest.mark.parametrize("expression", sorted(set(asked())))
def test_what_is_asked_for_is_there(expression: str, offered: dict[str, set[str]]) -> None:
    used = names(expression)
    assert used
    assert used <= offered.keys()
    assert labels(expression) <= THEIRS.union(*(offered[name] for name in used))


def test_a_service_exposes_it(service: Service) -> None:
    """The names, in a scrape of a service that has made and refused something."""
    service.generate({"bundle": "tiny", "counts": {"cat": 1}})
    service.generate({"bundle": "tiny", "counts": {"cow": 1}})
    scraped = set(re.findall(r"^augmint_\w+", service.ask("GET", "/metrics").body.decode(), re.MULTILINE))
    # Without a GPU nothing is padded; nothing was asked for under a quality.
    elsewhere = {"augmint_padding_rows_total", "augmint_unfit_images_total"}
    assert set.union(*map(names, asked())) - elsewhere <= scraped


def test_the_dashboard_is_one() -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    (source, job) = dashboard["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert names(job["definition"]) == {"augmint_ready_workers"}
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, f"{panel['title']} covers another"
        taken |= cells


def test_every_alert_says_what_and_how_bad() -> None:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["expr"].count("(") == rule["expr"].count(")")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, which reads PromQL, is not installed")
def test_prometheus_reads_the_alerts() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
