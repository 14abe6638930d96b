"""Who may ask: tokens, scopes, quotas, and this machine alone where there are none."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from starlette.middleware.cors import CORSMiddleware

from augmint import Client
from augmint.cli import main
from augmint.errors import ServiceError, UnavailableError, UsageError
from serving.access import AccessError, Caller, Door, add_token, is_loopback, read_tokens, remove_token
from serving.limits import Quota, RateLimit
from serving.middleware import with_cors
from serving.run import ServeRequest, serve
from tests.serving.conftest import bentoml_serve, free_port
from tests.serving.test_api import Harness, problem
from tests.serving.test_api import run as run  # the fixture


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def bearer(secret: str) -> bytes:
    return b"Bearer " + secret.encode()


def code_of(error: pytest.ExceptionInfo[AccessError]) -> str:
    return error.value.code


# ---------------------------------------------------------------------------------------------- the file


def test_the_file_keeps_hashes_and_only_its_owner_writes_it(file: Path) -> None:
    secret = add_token(file, "trainer", images_per_day=5)
    assert secret.startswith("augmint_")
    assert len(secret) > 40
    assert secret not in file.read_text()
    assert not stat.S_IMODE(file.stat().st_mode) & 0o022
    (token,) = read_tokens(file)
    assert (token.name, token.scopes, token.images_per_day) == ("trainer", ["generate"], 5)
    other = add_token(file, "prometheus", scopes=("admin",))
    assert other != secret
    remove_token(file, "trainer")
    assert [token.name for token in read_tokens(file)] == ["prometheus"]
    assert os.listdir(file.parent) == [file.name], "nothing half written is left"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "no file of tokens"),
        (b"[]", "no file of tokens"),
        (b'{"tokens": [{"name": "a"}]}', r"tokens\.0\.sha256"),
        (
            json.dumps({"tokens": [{"name": "a", "sha256": "0" * 64, "scopes": ["root"]}]}).encode(),
            r"tokens\.0\.scopes",
        ),
        (json.dumps({"tokens": [{"name": n, "sha256": "0" * 64} for n in "ab"]}).encode(), "same sha256"),
        (json.dumps({"tokens": [{"name": "a", "sha256": c * 64} for c in "01"]}).encode(), "same name"),
        (json.dumps({"tokens": [{"name": "a", "sha256": "0" * 64, "expires": "2026-13-01"}]}).encode(), "not a day"),
    ],
)
def test_a_file_that_is_none_is_refused(file: Path, content: bytes, says: str) -> None:
    file.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        read_tokens(file)


def test_names_and_what_is_not_there(file: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_tokens(file)
    with pytest.raises(UsageError, match="cannot be a token's name"):
        add_token(file, "no spaces")
    assert not file.exists()
    add_token(file, "a")
    with pytest.raises(UsageError, match="named 'a' already"):
        add_token(file, "a")
    with pytest.raises(UsageError, match="no token named 'b': there is a"):
        remove_token(file, "b")


# ---------------------------------------------------------------------------------------------- the door


def test_tokens_scopes_and_expiry(file: Path) -> None:
    secret = add_token(file, "trainer", images_per_day=7)
    admin = add_token(file, "admin", scopes=("admin", "generate"))
    today = datetime.now(UTC).date()
    over = add_token(file, "old", expires=today - timedelta(days=1))
    still = add_token(file, "young", expires=today)
    door = Door(file)
    assert door.admit(bearer(secret), "generate", "1.2.3.4") == Caller("trainer", 7)
    assert door.admit(b"bearer  " + admin.encode(), "admin", "").name == "admin"
    assert door.admit(bearer(still), "generate", "").name == "young"
    for wrong in (
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic " + secret.encode(),
        bearer(over),
        bearer(secret[:-1]),
        bearer("\u00fc"),
        bearer(secret + "x"),
    ):
        with pytest.raises(AccessError) as refused:
            door.admit(wrong, "generate", "")
        assert code_of(refused) == "service.unauthorized"
        assert refused.value.challenge is not None
    with pytest.raises(AccessError) as refused:
        door.admit(bearer(secret), "admin", "")
    assert code_of(refused) == "service.forbidden"
    door.check_place("10.0.0.1", b"example.org")  # with tokens, from anywhere and under any name


def test_tokens_come_and_go_without_a_restart(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("serving.access.time.monotonic", lambda: clock[0])
    first = add_token(file, "first")
    door = Door(file)
    second = add_token(file, "second")
    remove_token(file, "first")
    clock[0] = 0.5
    assert door.admit(bearer(first), "generate", "").name == "first", "looked at once a second"
    clock[0] = 2.0
    assert door.admit(bearer(second), "generate", "").name == "second"
    with pytest.raises(AccessError):
        door.admit(bearer(first), "generate", "")
    file.write_text("{ half a file")
    clock[0] = 4.0
    assert door.admit(bearer(second), "generate", "").name == "second", "a broken file locks nobody out"
    file.unlink()
    clock[0] = 6.0
    assert door.admit(bearer(second), "generate", "").name == "second"


@pytest.mark.parametrize(
    ("server", "host", "allowed"),
    [
        ("127.0.0.1", b"127.0.0.1:3000", True),
        ("127.0.0.1", b"localhost:3000", True),
        ("127.1.2.3", b"LOCALHOST.", True),
        ("::1", b"[::1]:3000", True),
        ("::ffff:127.0.0.1", b"localhost", True),
        ("/run/augmint.sock", None, True),
        ("127.0.0.1", None, True),
        ("127.0.0.1", b"evil.example:3000", False),  # DNS rebinding
        ("127.0.0.1", b"localhost.evil.example", False),
        ("127.0.0.1", b"a b", False),
        ("10.0.0.1", b"10.0.0.1", False),
        ("172.17.0.2", b"localhost", False),
        ("fe80::1", b"localhost", False),
        (None, b"localhost", False),
    ],
)
def test_without_tokens_only_this_machine(server: str | None, host: bytes | None, allowed: bool) -> None:
    door = Door(None)
    assert door.local_only
    if allowed:
        door.check_place(server, host)
        assert door.admit(None, "admin", "127.0.0.1") == Caller("127.0.0.1")
    else:
        with pytest.raises(AccessError):
            door.check_place(server, host)


def test_auth_off_and_named_hosts() -> None:
    everybody = Door(None, open_to_all=True)
    everybody.check_place("10.0.0.1", b"anything")
    named = Door(None, open_to_all=True, hosts=("images.example",))
    named.check_place("10.0.0.1", b"Images.Example:443")
    with pytest.raises(AccessError) as refused:
        named.check_place("10.0.0.1", b"other.example")
    assert code_of(refused) == "service.host"


def test_a_file_goes_before_auth_off(file: Path) -> None:
    add_token(file, "a")
    with pytest.raises(AccessError):
        Door(file, open_to_all=True).admit(None, "generate", "")


def test_loopback_addresses() -> None:
    assert [is_loopback(a) for a in ("127.0.0.1", "::1", "0.0.0.0", "::", "192.168.1.1", "", None)] == [
        True, True, False, False, False, False, False
    ]  # fmt: skip


def test_a_quota_fills_up_over_a_day() -> None:
    quota = Quota(workers=1)
    quota.take("a", None, 10**9)
    quota.take("a", 100, 100, now=0.0)
    with pytest.raises(UnavailableError) as refused:
        quota.take("a", 100, 50, now=0.0)
    assert refused.value.code == "service.quota"
    assert refused.value.retry_after == pytest.approx(43_200)
    quota.take("a", 100, 50, now=43_200.0)
    quota.take("b", 100, 100, now=0.0)
    halves = Quota(workers=2)
    halves.take("a", 100, 50, now=0.0)
    with pytest.raises(UnavailableError):
        halves.take("a", 100, 1, now=0.0)
    with pytest.raises(UnavailableError) as refused:
        quota.take("c", 100, 101, now=0.0)
    assert refused.value.retry_after is None, "it will never be allowed"


def test_workers_share_their_limits(tmp_path: Path) -> None:
    """Two of them, as two processes have them: what one counts, the other knows; what is owed, too."""
    file = tmp_path / "limits"
    one, other = Quota(2, file), Quota(2, file)
    one.take("a", 100, 70, now=0.0)
    with pytest.raises(UnavailableError) as refused:
        other.take("a", 100, 90, now=43_200.0)  # half a day later 80 are left
    assert refused.value.code == "service.quota"
    other.take("a", 100, 70, now=43_200.0)
    other.charge("a", 20)
    with pytest.raises(UnavailableError) as refused:
        one.take("a", 100, 1, now=43_200.0)
    assert refused.value.retry_after == pytest.approx(11 * 864)
    fast, faster = RateLimit(10, 100, file), RateLimit(10, 100, file)
    fast.take("a", 600, now=0.0)
    with pytest.raises(UnavailableError) as refused:
        faster.take("a", 1, now=0.0)
    assert refused.value.code == "service.rate"
    faster.take("a", 10, now=1.0)
    for limit in (one, other, fast, faster):
        limit.close()


# ---------------------------------------------------------------------------------------------- the API


def test_the_api_asks_for_tokens(run: Callable[..., None], file: Path) -> None:
    user, admin = add_token(file, "user", images_per_day=3), add_token(file, "admin", scopes=("admin",))

    async def scenario(h: Harness) -> None:
        h.gate.set()
        body = {"counts": {h.api.context.library["tiny"].info.class_names[0]: 2}, "seed": 1}
        for path in ("/livez", "/readyz", "/", "/openapi.json"):
            reply = await h.ask(method="GET", path=path, server=("10.0.0.1", 80))
            assert reply is not None
            assert reply.status == 200
        for method, path in (
            ("POST", "/v1/generate"),
            ("GET", "/v1/bundles"),
            ("GET", "/metrics"),
            ("GET", "/docs.json"),
            ("GET", "/schema.json"),
            ("GET", "/v1/bundles/tiny"),
            ("GET", "/v1/bundles/tiny/samples.png"),
            ("GET", "/v1/bundles/tiny/report"),
        ):
            reply = await h.ask(body, method=method, path=path, server=("10.0.0.1", 80))
            problem(reply, 401, "unauthorized")
            assert reply is not None
            assert reply.headers["www-authenticate"].startswith("Bearer")
        allowed = {"Authorization": f"Bearer {user}"}
        reply = await h.ask(body, headers=allowed)
        assert reply is not None
        assert reply.status == 200
        assert reply.headers["x-frame-options"] == "DENY"
        for path in ("/metrics", "/docs.json", "/schema.json"):
            problem(await h.ask(method="GET", path=path, headers=allowed), 403, "forbidden")
        problem(await h.ask(body, headers={"Authorization": f"Bearer {admin}"}), 403, "forbidden")
        reply = await h.ask(method="GET", path="/metrics", headers={"Authorization": f"Bearer {admin}"})
        assert reply is not None
        assert reply.status == 200
        reply = await h.ask(body, headers=allowed)
        problem(reply, 429, "quota")
        assert reply is not None
        assert int(reply.headers["retry-after"]) > 1

    run(scenario, tokens=file)


FREE = {"/", "/livez", "/healthz", "/readyz", "/openapi.json", "/v2/health/live", "/v2/health/ready"}


def test_every_address_asks_for_a_token_but_those_that_give_nothing_away(run: Callable[..., None], file: Path) -> None:
    secret = add_token(file, "user")

    async def scenario(h: Harness) -> None:
        routes = h.api.context.routes
        assert {route.path for route in routes if route.scope is None} == FREE
        for route in routes:
            path = re.sub(r"\{\w+\}", "1", route.path)
            if route.path in FREE:
                continue
            problem(await h.ask({}, method=route.method, path=path), 401, "unauthorized")
            for given in (f"Bearer {secret}x", f"Basic {secret}", f"Bearer {secret}, Bearer {secret}", secret):
                reply = await h.ask({}, method=route.method, path=path, headers={"Authorization": given})
                problem(reply, 401, "unauthorized")

    run(scenario, tokens=file)


def test_the_api_answers_strangers_only_when_told_to(run: Callable[..., None]) -> None:
    async def closed(h: Harness) -> None:
        reply = await h.ask(method="GET", path="/v1/bundles", server=("10.0.0.1", 80))
        assert "AUGMINT_TOKENS" in problem(reply, 401, "unauthorized")["detail"]
        reply = await h.ask(method="GET", path="/v1/bundles", headers={"Host": "evil.example"})
        problem(reply, 421, "misdirected")

    async def opened(h: Harness) -> None:
        reply = await h.ask(method="GET", path="/v1/bundles", server=("10.0.0.1", 80), headers={"Host": "x"})
        assert reply is not None
        assert reply.status == 200

    run(closed)
    run(opened, auth=False)


def test_long_addresses_and_headers_are_refused(run: Callable[..., None]) -> None:
    async def scenario(h: Harness) -> None:
        problem(await h.ask(method="GET", path="/" + "a" * 9000), 414, "uri-too-long")
        problem(await h.ask(method="GET", path="/livez", headers={"x": "a" * 40_000}), 431, "headers-too-large")

    run(scenario)


def test_other_pages_may_ask_only_where_they_are_named(run: Callable[..., None]) -> None:
    async def scenario(h: Harness) -> None:
        api = h.api
        assert with_cors(api, ()) is api
        h.api = with_cors(api, ("https://a.example",))
        assert isinstance(h.api, CORSMiddleware)
        preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for origin, status in (("https://a.example", 200), ("https://b.example", 400)):
            reply = await h.ask(method="OPTIONS", headers={"Origin": origin, **preflight})
            assert reply is not None
            assert reply.status == status
            reply = await h.ask(method="GET", path="/v1/bundles", headers={"Origin": origin})
            assert reply is not None
            assert (reply.headers.get("access-control-allow-origin") == origin) == (status == 200)
        h.api = api

    run(scenario)


# ---------------------------------------------------------------------------------------------- the real thing


def test_a_service_with_tokens(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the commands: make a token, serve, ask with it and without, take it back."""
    file = tmp_path / "tokens.json"
    with pytest.raises(SystemExit) as done:
        main(["token", "trainer", "--file", str(file), "--days", "1"])
    assert done.value.code == 0
    secret = capsys.readouterr().out.strip()
    assert read_tokens(file)[0].expires == (datetime.now(UTC).date() + timedelta(days=1)).isoformat()
    assert date.fromisoformat(str(read_tokens(file)[0].expires))
    with bentoml_serve(
        tmp_path / "home", AUGMINT_BUNDLES=str(tiny_bundle), AUGMINT_TOKENS=str(file), AUGMINT_DEVICE="cpu"
    ) as service:
        service.wait_until_ready()
        url = f"http://127.0.0.1:{service.port}"
        with Client(url, token=secret) as client:
            assert len(client.generate({client.info().class_names[0]: 3}, seed=1)) == 3
        with pytest.raises(ServiceError, match="refuses access"), Client(url, retries=0) as client:
            client.generate({"x": 1})
        with pytest.raises(SystemExit) as done:
            main(["token", "trainer", "--file", str(file), "--revoke"])
        assert done.value.code == 0
        headers = {"Authorization": f"Bearer {secret}"}
        until = datetime.now(UTC) + timedelta(seconds=10)
        status = 200
        while status == 200 and datetime.now(UTC) < until:
            status = service.ask("GET", "/v1/bundles", headers=headers).status
        assert status == 401
        service.stop()
        assert secret not in service.log.read_text()


def test_serve_refuses_to_let_others_in_unasked(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUGMINT_TOKENS", "AUGMINT_AUTH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=r"--host 0\.0\.0\.0 lets others in"):
        serve(ServeRequest(bundles=(tiny_bundle,), host="0.0.0.0", port=free_port(), device="cpu"))
    with pytest.raises(UsageError, match="cannot be read"):
        serve(ServeRequest(bundles=(tiny_bundle,), port=free_port(), tokens=Path("none.json"), device="cpu"))
