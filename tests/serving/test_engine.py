"""The batcher alone: any mixture of requests in any interleaving gives each its own rows, and nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from augmint.errors import AugmintError, DeadlineError, ServiceError, UnavailableError
from augmint.samples import Request
from serving.engine import Engine, Lane, Ticket, power_buckets

NAMES = ("a", "b", "c")


def paint(labels: Any, seeds: Any, indices: Any, truncation: Any, edits: Any) -> NDArray[np.uint8]:
    """An "image" [1, 1, 5] that tells its address and edit."""
    steps = np.zeros(len(labels))
    for start, stop, edit in edits:
        assert 0 <= start < stop <= len(labels)
        steps[start:stop] += 128 + 32 * dict(edit)["slant"]
    columns = [labels, seeds % 251, indices % 251, np.round(np.asarray(truncation) * 200), steps]
    return np.stack([np.asarray(column).astype(np.uint8) for column in columns], axis=1).reshape(-1, 1, 1, 5)


def expected(request: Request) -> NDArray[np.uint8]:
    labels, indices = request.addresses()
    seeds = np.full(request.total, request.seed, dtype=np.uint64)
    edits = [(0, request.total, request.edit)] if request.edit else []
    return paint(labels, seeds, indices, np.full(request.total, request.truncation), edits)


class Notes:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        self.refusals: list[str] = []

    def batch(self, lane: Lane, rows: int, padding: int, seconds: float, waits: Sequence[float], pending: int) -> None:
        self.batches.append((rows, padding))

    def refused(self, reason: str, images: int) -> None:
        self.refusals.append(reason)


class Gate:
    """A render function that waits until it is let through."""

    def __init__(self, render: Callable[..., NDArray[np.uint8]] = paint) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.calls: list[int] = []
        self._render = render

    def __call__(self, *rows: Any) -> NDArray[np.uint8]:
        self.calls.append(len(rows[0]))
        self.entered.release()
        assert self.open.wait(10)
        return self._render(*rows)


def lane(render: Callable[..., NDArray[np.uint8]] = paint, **options: Any) -> Lane:
    return Lane("lane", render, (1, 1, 5), **options)


def ask(**counts: int) -> Request:
    return Request.make(counts, NAMES, seed=7)


requests = st.builds(
    lambda counts, seed, offset, truncation, edit: Request.make(
        counts, NAMES, seed=seed, offset=offset, truncation=truncation, edit=edit, editable={"slant": 3.0}
    ),
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 70), min_size=1).filter(lambda c: sum(c.values()) > 0),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**63),
    st.sampled_from([1.0, 0.5, 0.25]),
    st.sampled_from([None, {"slant": 1.5}, {"slant": -2.0}]),
)


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(st.tuples(requests, st.booleans()), min_size=1, max_size=12),
    batch=st.integers(1, 40),
    padded=st.booleans(),
    batching=st.booleans(),
    threads=st.integers(1, 3),
)
def test_every_request_gets_its_own_rows(
    asked: list[tuple[Request, bool]], batch: int, padded: bool, batching: bool, threads: int
) -> None:
    notes = Notes()
    lanes = [lane(batch=batch, buckets=power_buckets(64) if padded else ()) for _ in range(2)]
    engine = Engine(threads=threads, queue_images=10_000, batching=batching, observer=notes)
    try:
        tickets = [engine.submit(lanes[second], request) for request, second in asked]
        for ticket in tickets:
            assert np.array_equal(engine.wait(ticket, 10), expected(ticket.request))
        assert engine.drain(10)
        assert engine.pending == 0
        assert sum(rows for rows, _ in notes.batches) == sum(request.total for request, _ in asked)
        assert all(rows <= batch for rows, _ in notes.batches)
        assert all((rows + padding).bit_count() == 1 for rows, padding in notes.batches if padded)
        assert padded or all(padding == 0 for _, padding in notes.batches)
    finally:
        engine.close()


Address = tuple[int, int, int, float]
addresses = st.tuples(
    st.integers(0, 2),
    st.sampled_from([0, 5, 2**64 - 1]),
    st.integers(0, 6) | st.just(2**64 - 2),
    st.sampled_from([1.0, 0.5]),
)


def of_addresses(rows: list[Address]) -> tuple[Request, NDArray[np.uint8]]:
    """The request for these addresses, and what it should be answered."""
    labels, seeds, indices, shares = zip(*rows, strict=True)
    columns = (
        np.array(labels),
        np.array(seeds, dtype=np.uint64),
        np.array(indices, dtype=np.uint64),
        np.array(shares),
    )
    return Request.of_addresses(*columns, NAMES), paint(*columns, [])


@settings(max_examples=40, deadline=None)
@given(
    asked=st.lists(st.lists(addresses, min_size=1, max_size=60), min_size=1, max_size=5),
    others=st.lists(requests, max_size=3),
    batch=st.integers(1, 40),
)
def test_any_mixture_of_addresses_is_one_request(asked: list[list[Address]], others: list[Request], batch: int) -> None:
    engine = Engine(threads=2, queue_images=10_000)
    one = lane(batch=batch)
    try:
        tickets = [(engine.submit(one, request), images) for request, images in map(of_addresses, asked)]
        between = [engine.submit(one, request) for request in others]
        for ticket, images in tickets:
            assert np.array_equal(engine.wait(ticket, 10), images)
        for ticket in between:
            assert np.array_equal(engine.wait(ticket, 10), expected(ticket.request))
    finally:
        engine.close()


def test_addresses_that_go_on_are_one_run() -> None:
    request, _ = of_addresses([(1, 5, i, 1.0) for i in range(50)] + [(1, 5, 7, 1.0), (1, 5, 8, 0.5), (2, 5, 9, 0.5)])
    assert request.counts == (("b", 50), ("b", 1), ("b", 1), ("c", 1))
    assert request.firsts == (0, 7, 8, 9)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([(3, 0, 0, 1.0)], "unknown label '3'"),
        ([(-1, 0, 0, 1.0)], "unknown label '-1'"),
        ([(0, 0, 2**64 - 1, 1.0)], "index"),
        ([(0, 0, 0, 1.0), (0, 0, 0, float("nan"))], "truncation"),
        ([(0, 0, 0, 0.0)], "truncation"),
    ],
)
def test_addresses_that_are_none(rows: list[Address], sentence: str) -> None:
    with pytest.raises(AugmintError, match=sentence):
        of_addresses(rows)


@settings(max_examples=30, deadline=None)
@given(
    asked=st.lists(requests, min_size=2, max_size=10),
    victims=st.sets(st.integers(0, 9)),
    batch=st.integers(1, 40),
)
def test_cancelling_some_leaves_the_others(asked: list[Request], victims: set[int], batch: int) -> None:
    engine = Engine(threads=2, queue_images=10_000)
    one = lane(batch=batch)
    try:
        tickets = [engine.submit(one, request) for request in asked]
        for number in victims:
            if number < len(tickets):
                engine.cancel(tickets[number])
        for number, ticket in enumerate(tickets):
            if ticket.error is None:
                assert np.array_equal(engine.wait(ticket, 10), expected(ticket.request))
            else:
                assert number in victims
        assert engine.drain(10)
        assert engine.pending == 0
    finally:
        engine.close()


def test_requests_that_wait_together_share_a_call() -> None:
    gate = Gate()
    engine = Engine(threads=1, queue_images=1000)
    one = lane(gate, batch=64)
    try:
        first = engine.submit(one, ask(a=1))
        assert gate.entered.acquire(timeout=10)
        others = [engine.submit(one, ask(b=1)) for _ in range(20)]
        gate.open.set()
        for ticket in [first, *others]:
            engine.wait(ticket, 10)
        assert gate.calls == [1, 20]
    finally:
        engine.close()


def test_without_batching_every_request_is_a_call_of_its_own() -> None:
    gate = Gate()
    gate.open.set()
    engine = Engine(threads=1, queue_images=1000, batching=False)
    one = lane(gate, batch=8)
    try:
        for ticket in [engine.submit(one, ask(a=n)) for n in (1, 2, 3, 20)]:
            assert np.array_equal(engine.wait(ticket, 10), expected(ticket.request))
        assert sorted(gate.calls) == sorted([1, 2, 3, 8, 8, 4])
    finally:
        engine.close()


def test_requests_submitted_without_waking_share_a_call() -> None:
    gate = Gate()
    gate.open.set()
    engine = Engine(threads=2, queue_images=1000)
    one = lane(gate)
    try:
        tickets = [engine.submit(one, ask(a=1), wake=False) for _ in range(9)]
        engine.wake()
        for ticket in tickets:
            engine.wait(ticket, 10)
        assert gate.calls == [9]
    finally:
        engine.close()


def test_one_wake_is_enough_for_several_lanes() -> None:
    gate = Gate()
    engine = Engine(threads=2, queue_images=1000)
    slow, quick = lane(gate), lane()
    try:
        time.sleep(0.05)  # both threads are waiting for work
        first = engine.submit(slow, ask(a=1), wake=False)
        second = engine.submit(quick, ask(b=1), wake=False)
        engine.wake()
        assert np.array_equal(engine.wait(second, 5), expected(second.request))  # though the other lane is busy
        assert not first.done
        gate.open.set()
        engine.wait(first, 10)
    finally:
        gate.open.set()
        engine.close()


@pytest.mark.parametrize("mixed", [False, True])
def test_a_small_request_is_not_behind_a_large_one(mixed: bool) -> None:
    gate = Gate()
    calls_until: dict[object, int] = {}
    engine = Engine(
        threads=1,
        queue_images=10_000,
        notify=lambda tickets: calls_until.update({ticket.context: len(gate.calls) for ticket in tickets}),
    )
    one = lane(gate, batch=32)
    try:
        rows = [(0, seed, 5, 1.0) for seed in range(3000)]  # as an inference may ask for: no two of one seed
        large = engine.submit(one, of_addresses(rows)[0] if mixed else ask(a=3000), context="large")
        assert gate.entered.acquire(timeout=10)
        small = engine.submit(one, ask(b=1), context="small")
        gate.open.set()
        engine.wait(small, 10)
        engine.wait(large, 10)
        assert calls_until["small"] == 2
        assert calls_until["large"] > 90
    finally:
        engine.close()


def test_a_large_request_is_made_by_all_threads() -> None:
    gate = Gate()
    engine = Engine(threads=2, queue_images=10_000)
    try:
        ticket = engine.submit(lane(gate, batch=16), ask(a=100))
        assert gate.entered.acquire(timeout=10)
        assert gate.entered.acquire(timeout=10)  # a second call began while the first one runs
        gate.open.set()
        assert np.array_equal(engine.wait(ticket, 10), expected(ticket.request))
    finally:
        engine.close()


@pytest.mark.filterwarnings("default")
def test_an_error_reaches_only_its_own_request(caplog: pytest.LogCaptureFixture) -> None:
    def picky(labels: Any, *others: Any) -> NDArray[np.uint8]:
        if (np.asarray(labels) == 2).any():
            raise RuntimeError("/secret/path: no")
        return paint(labels, *others)

    gate = Gate(picky)
    notes = Notes()
    engine = Engine(threads=1, queue_images=1000, observer=notes)
    one = lane(gate)
    try:
        first = engine.submit(one, ask(a=1))
        assert gate.entered.acquire(timeout=10)
        mixed = [engine.submit(one, ask(**{name: 3})) for name in ("a", "c", "b", "c", "a")]
        bulk = engine.submit(one, ask(b=200, c=1))
        gate.open.set()
        engine.wait(first, 10)
        for ticket in mixed:
            if ticket.request.counts[0][0] == "c":
                with pytest.raises(ServiceError, match="could not be made") as caught:
                    engine.wait(ticket, 10)
                assert caught.value.code == "service.internal"
                assert "secret" not in str(caught.value)
            else:
                assert np.array_equal(engine.wait(ticket, 10), expected(ticket.request))
        with pytest.raises(ServiceError):
            engine.wait(bulk, 10)
        assert engine.drain(10)
        assert engine.pending == 0
        assert notes.refusals == ["error", "error", "error"]
        assert "/secret/path" in caplog.text  # for the operator
    finally:
        engine.close()


def test_what_does_not_fit_into_memory_is_made_in_smaller_batches(caplog: pytest.LogCaptureFixture) -> None:
    """A request of many rows and many requests of one row, in calls that can hold ten; later ones do not try again."""
    calls: list[int] = []

    def small(labels: Any, *others: Any) -> NDArray[np.uint8]:
        calls.append(len(labels))
        if len(labels) > 10:
            raise MemoryError("no room")
        return paint(labels, *others)

    engine = Engine(threads=1, queue_images=10_000)
    try:
        one = lane(small, batch=64)
        ticket = engine.submit(one, ask(a=33, b=31))
        assert np.array_equal(engine.wait(ticket, 10), expected(ticket.request))
        assert one.batch == 8
        calls.clear()
        ticket = engine.submit(one, ask(c=64))
        assert np.array_equal(engine.wait(ticket, 10), expected(ticket.request))
        assert max(calls) == 8
        one = lane(small, batch=64)
        tickets = [engine.submit(one, ask(a=1), wake=False) for _ in range(20)]
        engine.wake()
        for ticket in tickets:
            assert np.array_equal(engine.wait(ticket, 10), expected(ticket.request))
        assert one.batch == 10
        assert "in batches of up to 10 images from now on" in caplog.text
    finally:
        engine.close()


def test_a_full_queue_refuses_and_estimates_the_wait() -> None:
    gate = Gate()
    notes = Notes()
    engine = Engine(threads=1, queue_images=100, observer=notes)
    one = lane(gate)
    try:
        ticket = engine.submit(one, ask(a=90))
        with pytest.raises(UnavailableError, match="90 images to make already, of 100") as caught:
            engine.submit(one, ask(a=11))
        assert caught.value.code == "service.queue-full"
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > 0
        second = engine.submit(one, ask(a=10))  # exactly full is not too full
        gate.open.set()
        engine.wait(ticket, 10)
        engine.wait(second, 10)
        assert engine.drain(10)
        assert notes.refusals == ["queue-full"]
    finally:
        engine.close()


def test_a_request_that_would_wait_long_is_refused_at_once() -> None:
    """Which a large one may do for half as long as it takes itself, and a small one need not do behind a large one."""
    gate = Gate()
    engine = Engine(threads=1, queue_images=100_000, queue_s=0.5)
    one = lane(gate, batch=16)
    one.seconds_per_image = 0.01
    try:
        begun = engine.submit(one, ask(a=1000))
        assert gate.entered.acquire(timeout=10)
        with pytest.raises(UnavailableError, match=r"work for 10\.0 s already") as caught:
            engine.submit(one, ask(a=1999))
        assert caught.value.code == "service.queue-full"
        assert caught.value.retry_after == pytest.approx(10)
        admitted = [begun, engine.submit(one, ask(a=2000)), engine.submit(one, ask(b=1))]  # 0.48 s
        with pytest.raises(UnavailableError):
            engine.submit(one, ask(b=1))
        more = engine.submit(one, ask(b=1), admitted=True)
        gate.open.set()
        for ticket in (*admitted, more):
            assert np.array_equal(engine.wait(ticket, 10), expected(ticket.request))
    finally:
        engine.close()


def test_small_calls_do_not_make_the_pace() -> None:
    engine = Engine(threads=1, queue_images=1000)
    one = lane(batch=32)
    one.seconds_per_image = 100.0
    try:
        engine.wait(engine.submit(one, ask(a=15)), 10)
        assert one.seconds_per_image == 100.0
        engine.wait(engine.submit(one, ask(a=16)), 10)
        assert one.seconds_per_image < 91
    finally:
        engine.close()


def test_a_cancelled_request_frees_the_queue_at_once() -> None:
    gate = Gate()
    engine = Engine(threads=1, queue_images=1000)
    one = lane(gate, batch=16)
    try:
        ticket = engine.submit(one, ask(a=1000))
        assert gate.entered.acquire(timeout=10)
        assert engine.pending == 1000
        engine.cancel(ticket)
        assert engine.pending == 16  # what is in the running call
        other = engine.submit(one, ask(b=900))
        gate.open.set()
        engine.wait(other, 10)
        with pytest.raises(ServiceError) as caught:
            engine.wait(ticket, 1)
        assert caught.value.code == "service.cancelled"
        assert engine.drain(10)
        assert sum(gate.calls) == 16 + 900
    finally:
        engine.close()


def test_deadlines_at_admission_and_in_the_queue() -> None:
    gate = Gate()
    notes = Notes()
    engine = Engine(threads=1, queue_images=1000, observer=notes)
    one = lane(gate, batch=16)
    try:
        with pytest.raises(DeadlineError):
            engine.submit(one, ask(a=1), deadline=time.monotonic() - 1)
        begun = engine.submit(one, ask(a=40), deadline=time.monotonic() + 0.05)
        assert gate.entered.acquire(timeout=10)
        queued = engine.submit(one, ask(b=1), deadline=time.monotonic() + 0.05)
        time.sleep(0.1)
        gate.open.set()
        for ticket in (begun, queued):
            with pytest.raises(DeadlineError):
                engine.wait(ticket, 10)
        assert engine.drain(10)
        assert gate.calls == [16]  # neither the rest of the first nor the second was made
        assert notes.refusals == ["deadline"] * 3
    finally:
        engine.close()


def test_draining_finishes_what_was_admitted_and_refuses_the_rest() -> None:
    gate = Gate()
    engine = Engine(threads=1, queue_images=1000)
    one = lane(gate, batch=8)
    try:
        ticket = engine.submit(one, ask(a=50))
        engine.stop_admitting()
        with pytest.raises(UnavailableError) as caught:
            engine.submit(one, ask(a=1))
        assert caught.value.code == "service.draining"
        assert not engine.drain(0.01)
        gate.open.set()
        assert engine.drain(10)
        assert np.array_equal(engine.wait(ticket, 1), expected(ticket.request))
    finally:
        engine.close()


def test_closing_fails_what_is_left() -> None:
    gate = Gate()
    engine = Engine(threads=1, queue_images=1000)
    one = lane(gate, batch=8)
    ticket = engine.submit(one, ask(a=50))
    assert gate.entered.acquire(timeout=10)
    closer = threading.Thread(target=engine.close)
    closer.start()
    with pytest.raises(UnavailableError):
        engine.wait(ticket, 10)
    gate.open.set()
    closer.join(10)
    assert not closer.is_alive()
    assert engine.pending == 0


def test_tickets_that_end_together_are_announced_together() -> None:
    announced: list[list[Ticket]] = []
    gate = Gate()
    engine = Engine(threads=1, queue_images=1000, notify=lambda tickets: announced.append(list(tickets)))
    one = lane(gate)
    try:
        tickets = [engine.submit(one, ask(a=1), context=number, wake=False) for number in range(5)]
        engine.wake()
        gate.open.set()
        for ticket in tickets:
            engine.wait(ticket, 10)
        assert engine.drain(10)
        assert [[ticket.context for ticket in tickets] for tickets in announced] == [[0, 1, 2, 3, 4]]
    finally:
        engine.close()


def test_many_threads_submitting_at_once() -> None:
    engine = Engine(threads=2, queue_images=100_000)
    lanes = [lane(batch=16), lane(batch=5, buckets=(1, 2, 4, 8))]
    wrong: list[object] = []

    def submit(number: int) -> None:
        rng = np.random.default_rng(number)
        for _ in range(30):
            request = Request.make({"a": int(rng.integers(1, 40)), "b": int(rng.integers(0, 3))}, NAMES, seed=number)
            ticket = engine.submit(lanes[int(rng.integers(2))], request)
            try:
                if not np.array_equal(engine.wait(ticket, 20), expected(request)):
                    wrong.append(request)
            except (AugmintError, TimeoutError) as error:
                wrong.append(error)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    try:
        assert not wrong
        assert engine.pending == 0
    finally:
        engine.close()


@pytest.mark.parametrize("options", [{"batch": 0}, {"batch": 8, "buckets": (1, 4)}, {"batch": 2, "buckets": (4, 2)}])
def test_lanes_refuse_nonsense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="buckets ascending"):
        lane(**options)


def test_power_buckets() -> None:
    assert power_buckets(1) == (1,)
    assert power_buckets(256) == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert power_buckets(100) == (1, 2, 4, 8, 16, 32, 64, 100)
