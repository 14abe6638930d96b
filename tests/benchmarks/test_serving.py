"""The benchmark of the service: its clients, its limit, and the words of its page."""

from __future__ import annotations

import json
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import profiling, serving, serving_page
from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.load import SEED, Ask, Service, ask_once, free_port, running, send, wrk
from benchmarks.random_bundles import write_random_bundle
from benchmarks.serving import Limit, mixture

SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seeds = set()
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(200, b"%d" % len(self.seeds))
    def do_POST(self):
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seeds.add(wish["seed"])
        self.answer(200 if wish["n"] else 500, b"x" * 784 * wish["n"])
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def ask(n: int) -> Ask:
    return Ask("/", f'{{"n": {n}, "seed": {SEED}}}'.encode(), n, {"Content-Type": "application/json"})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    port = free_port()
    log = tmp_path_factory.mktemp("load") / "log"
    with running("a server", [sys.executable, "-c", SERVER, str(port)], port, log, ready="/") as found:
        yield found


def test_a_fixed_list_is_sent_once_and_waited_for(service: Service) -> None:
    assert ask_once(service, ask(2)) == b"x" * 1568
    figures = send(service, [ask(1)] * 30 + [ask(2000)] * 2, connections=4)
    assert figures.images > 0
    assert 0 < figures.p50 <= figures.p99
    assert figures.memory > 5
    with pytest.raises(RuntimeError, match="answered 500"):
        send(service, [ask(0)], connections=1)


def test_a_stopped_service_takes_no_time_and_goes_on_afterwards(service: Service) -> None:
    service.pause()
    try:
        deadline = time.monotonic() + 10
        while service.process.status() != "stopped":  # the signal may be on its way to another core
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        assert service.resume()
    assert not service.resume(), "it runs already"
    assert ask_once(service, ask(1)) == b"x" * 784


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk")
def test_wrk_sends_another_seed_each_time(service: Service, tmp_path: Path) -> None:
    figures = wrk(service, ask(3), 2, 1, tmp_path)
    assert figures.images > 3
    assert figures.cpu > 0
    seeds = int(urllib.request.urlopen(service.url).read())
    assert seeds > figures.images / 3 * 0.5
    with pytest.raises(RuntimeError, match="refused"):
        wrk(service, ask(0), 2, 1, tmp_path)


def test_a_service_that_ends_at_once_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"broken did not start:\n(.*\n)*.*no such luck"),
        running("broken", [sys.executable, "-c", "raise SystemExit('no such luck')"], free_port(), tmp_path / "log"),
    ):
        pass


def test_the_limit_of_a_generator(tmp_path: Path) -> None:
    limit = Limit(write_random_bundle("tiny", tmp_path / "tiny"))
    images, cpu = limit.measure(0.05, 4)
    assert images > 0
    assert cpu > 0


def test_a_mixture_has_as_many_images_of_each_kind() -> None:
    asks = mixture(lambda n, form: ask(n), "npy", rounds=2)
    assert {n: sum(a.images for a in asks if a.images == n) for n in (1, 16, 1024)} == {1: 2048, 16: 2048, 1024: 2048}


def row(images: float, cpu: float, share: float = 0.9) -> dict[str, Any]:
    shares = {"share_cpu": share, "share_wall": share}
    return {"images": images, "cpu": cpu, "p50": 1.0, "p99": 2.0, "memory": 100.0, **shares}


def result() -> dict[str, Any]:
    """All cells, with one peer that is behind everywhere but in one, where it failed."""
    cells = []
    for load in serving.LOADS:
        for form, images in (("npy", 100.0), ("png", 80.0)):
            services: dict[str, Any] = {OURS: row(images, 10.0, 0.96), "fastapi": row(50.0, 20.0, 0.5)}
            if (load, form) == ("bulk", "png"):
                services["fastapi"] = {"failed": "it fell over"}
            cells.append({"load": load, "form": form, "limit": {"images": 110.0, "cpu": 9.0}, "services": services})
    fairness = [{"callers": 1, "ratio": 5.1, "idle_p99": 1.0, "busy_p99": 5.1, "idle_p50": 1.0, "busy_p50": 2.0}]
    found = {
        "made": {"date": "2026-11-23", "machine": {"cpu": "a CPU", "cores": 2}, "versions": {"numpy": "2"}},
        "seconds": 2.0,
        "rounds": 3,
        "load_average": 1.0,
        "left_out": {"Triton": "its environment is not there"},
        "models": [
            {"name": "tiny", "shape": [28, 28, 1], "batch": 32, "sweep": {}, "cells": cells, "fairness": fairness}
        ],
        "start": {"empty": 2.0, "service": 5.0, "front": 6.5},
        "workers": {"images": {"small": {1: 10.0, 2: 15.0}}, "asked": 3072, "counted": 3071},
    }
    return dict(json.loads(json.dumps(found)))


def test_each_promise_is_judged_by_its_figure() -> None:
    verdicts = {promise.what: promise for promise in serving_page.promises(result())}
    kept = {what: promise.verdict for what, promise in verdicts.items()}
    assert kept["tiny, 32 × 1 as npy: at least 0.42 of the limit by CPU time an image"] == "kept"
    assert kept["tiny, 8 × 16: PNG at least 0.70 of npy's images a second"] == "kept"
    assert kept["tiny: p99 of one-image requests beside bulk at most 5 × the idle one, 1 at a time"] == "NOT KEPT"
    assert kept["`bentoml serve` is ready in under 3 × the time of an empty BentoML service"] == "kept"
    assert kept["`augmint serve` is ready in under 3 × the time of an empty BentoML service"] == "NOT KEPT"
    assert kept["two workers' metrics add up"] == "NOT KEPT"
    ahead = verdicts["ahead of every peer in every cell, by images a second"]
    assert ahead.kept
    assert ahead.figure.startswith("the closest: 1.60 × tiny/")

    behind = result()
    behind["models"][0]["cells"][0]["services"]["fastapi"] = row(125.0, 5.0)
    lost = [promise for promise in serving_page.promises(behind) if promise.what.startswith("ahead")]
    assert [promise.verdict for promise in lost] == ["NOT KEPT", "NOT KEPT"]
    assert lost[0].figure == "behind in 1 of 9: 0.80 × tiny/small/npy FastAPI"


def test_what_was_not_measured_is_not_judged() -> None:
    part = result()
    part["models"][0]["cells"] = part["models"][0]["cells"][:1]
    part |= {"start": {}, "workers": {}}
    verdicts = {promise.what: promise.verdict for promise in serving_page.promises(part)}
    assert verdicts["tiny, 8 × 16 as npy: at least 0.85 of the limit by CPU time an image"] == "not measured"
    assert not any("ready" in what or "workers" in what for what in verdicts)
    assert "not measured" in serving_page.table(part)


def test_the_page_has_the_shares_first_and_says_what_failed() -> None:
    text = serving_page.page(result())
    assert text.index("## Share of the limit") < text.index("## What was promised") < text.index("## All figures")
    assert "| 32 × 1 | npy | 0.96 / 0.96 | 0.50 / 0.50 |" in text
    assert "it fell over" in text
    assert "Left out: Triton: its environment is not there." in text
    assert "2 cores" in text


def test_every_contender_is_asked_for_the_same() -> None:
    for name, contender in CONTENDERS.items():
        for form in serving.FORMS:
            assert contender.ask(16, form).images == 16, name
    assert SEED.encode() in CONTENDERS[OURS].ask(1, "npy").body


def test_a_profile_shares_each_threads_time_among_its_functions() -> None:
    stacks = (
        "thread (7): Main;run (a.py:1);answer (b.py:2) 3\n"
        "thread (7): Main;run (a.py:1);answer (b.py:9) 1\n"
        "thread (8): engine;loop (c.py:1) 2\n"
        "thread (8): engine;Condition.wait (threading.py:327) 98\n"
    )
    lines = [line.split() for line in profiling._by_function(stacks, {7: 40.0, 8: 5.0, 9: 0.0})]
    assert ["40.00", "Main", "(7)"] in lines
    assert lines.count(["40.00", "answer", "(b.py)"]) == 2, "itself, and with what it calls"
    assert lines.count(["40.00", "run", "(a.py)"]) == 1, "it only calls"
    assert lines.count(["5.00", "loop", "(c.py)"]) == 2, "waiting is no work"


def test_a_wrong_choice_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serving, "require_wrk", lambda: None)
    for words, said in (
        (["--models", "huge"], "huge is none of tiny, 64x64"),
        (["--services", "fastapi"], "must name augmint"),
        (["--profile", "tiny/small"], "takes MODEL/LOAD/FORM"),
    ):
        monkeypatch.setattr("sys.argv", ["serving.py", *words])
        with pytest.raises(SystemExit):
            serving.main()
        assert said in capsys.readouterr().err
