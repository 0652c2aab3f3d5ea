"""The dashboard for Grafana asks for what a server has, and is a dashboard."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ockham.api.server.metrics import Families, Metrics, ModelMetrics
from ockham.core.ledger import Ledger
from ockham.core.speculative import DraftStats
from ockham.engine.messages import Stats

ROOT = Path(__file__).parents[3]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "packaging/grafana/ockham.json").read_text())
COLUMNS = 24
OF_KIND = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "gauge": ("",),
}
LABELS_OF_PROMETHEUS = {"instance", "job", "le"}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = DASHBOARD["panels"]
    return found


def queries() -> list[str]:
    """All that the dashboard asks Prometheus."""
    asked = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    asked += [each["expr"] for each in DASHBOARD["annotations"]["list"]]
    variables = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return [*asked, *(each["query"]["query"] for each in variables)]


def samples(text: str) -> dict[str, set[str]]:
    """Name of a sample -> the labels that samples of its metric bear."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        labels = {label for sample in family.samples for label in sample.labels}
        for ending in OF_KIND.get(family.type, ()):
            found[family.name + ending] = labels
    return found


def of_several() -> Metrics:
    """The metrics of a server of several models, which counts how they are loaded beside the
    rest."""
    families = Families()
    ModelMetrics("tiny", families)
    return Metrics("tiny", families)


def test_each_metric_of_the_dashboard_is_one_of_the_server(server):
    exposed = samples(server.get("/metrics").text)
    exposed |= samples(generate_latest(of_several().registry).decode())
    named = {name for query in queries() for name in re.findall(r"\b(?:ockham|process)_\w+", query)}
    assert len(named) > 40
    assert named <= exposed.keys()


def test_labels_of_the_dashboard_are_those_of_the_metrics():
    metrics, ledger = of_several(), Ledger()
    ledger.save("prefix", 1)
    ledger.waste("trigram", 1)
    metrics.stats(Stats(ledger=ledger, drafts=DraftStats(accepted_at=[1])))
    metrics.answered("/health", 200)
    exposed = samples(generate_latest(metrics.registry).decode())
    for query in queries():
        for name, matchers in re.findall(r"\b((?:ockham|process)_\w+)\{([^}]*)\}", query):
            for label in re.findall(r"(\w+)(?:=~|!~|=|!=)\"", matchers):
                assert label in exposed[name] | LABELS_OF_PROMETHEUS, (query, label)
        for labels in re.findall(r"sum by \(([^)]*)\)", query):
            (name, *_) = re.findall(r"\bockham_\w+", query)
            for label in labels.split(", "):
                assert label in exposed[name] | LABELS_OF_PROMETHEUS, (query, label)


def test_panels_have_names_of_their_own_and_do_not_overlap():
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]),
                range(place["y"], place["y"] + place["h"]),
            )
        )
        assert not cells & taken, panel["title"]
        taken |= cells


def test_panels_ask_the_data_source_that_is_chosen_and_explain_themselves():
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    for query in queries():
        used = {name for name in re.findall(r"\$(\w+)", query) if not name.startswith("__")}
        assert used <= variables
    for panel in panels():
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["description"].endswith(".")
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names)


def test_what_is_counted_of_several_models_is_shown(server):
    queried = " ".join(queries())
    more = (
        samples(generate_latest(of_several().registry).decode()).keys()
        - samples(server.get("/metrics").text).keys()
    )
    assert more == {
        "ockham_model_loaded",
        "ockham_model_loads_total",
        "ockham_model_load_failures_total",
    }
    assert all(name in queried for name in more)
