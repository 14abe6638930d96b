"""Requests of every kind, good and bad, to every address of a service: does it do what its OpenAPI document says?

    python benchmarks/fuzz_api.py http://127.0.0.1:3000 [--cases 10000]

schemathesis makes the requests from the service's own /openapi.json: such as the document allows and such as it does
not, each of them as it stands and with the names of the bundles and labels that are there. Of every answer it is
checked that its status is documented and below 500, that its type, headers and body are as documented, and that an
error is problem+json. A 504 may come where the request itself had X-Request-Timeout-Ms.

Deterministic; prints a table; exits 1 when an answer was not as it should be.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode, Response
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi import checks

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
MOST_IMAGES = 20
"""Of a request that is meant to be answered: what is made is not the matter here."""
_MILD = {"per_shard": "^[1-9]$", "X-Request-Timeout-Ms": "^[1-9][0-9]{4}$"}
_PLAIN: dict[str, object] = {"quality": "none", "edit": {}}


@dataclass
class Account:
    """What one operation was asked and answered; `faults`: what was wrong -> a request that shows it."""

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)


def fuzz(url: str, cases: int) -> dict[str, Account]:
    """Ask at least so many requests of all operations together; the account of each, by its method and path."""
    with requests.Session() as session:
        session.trust_env = False
        document = session.get(f"{url}/openapi.json", timeout=30).json()
        bundles = session.get(f"{url}/v1/bundles", timeout=30).json()["bundles"]
        accounts: dict[str, Account] = {}
        documents = [document, informed(document, bundles)]
        operations = sum(len(item) for item in document["paths"].values())
        asked = turn = 0
        while asked < cases:
            examples = max(1, -(-(cases - asked) // (operations * 4)))
            before = asked
            for strategy, label in strategies(documents):
                account = accounts.setdefault(label, Account())
                cases_before = account.cases
                run(strategy, account, url, session, examples, turn)
                asked += account.cases - cases_before
            turn += 1
            if asked == before:
                raise AssertionError("no request could be made")
    return accounts


def strategies(documents: list[dict[str, Any]]) -> Iterator[tuple[Any, str]]:
    for document in documents:
        for found in schemathesis.openapi.from_dict(document).get_all_operations():
            operation = found.ok()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                yield operation.as_strategy(generation_mode=mode), operation.label


def run(strategy: Any, account: Account, url: str, session: requests.Session, examples: int, turn: int) -> None:
    @seed(turn)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def ask(case: Case) -> None:
        response = case.call(base_url=url, session=session, timeout=60)
        account.cases += 1
        account.statuses[response.status_code] += 1
        for fault in faults(case, response):
            account.faults.setdefault(fault, case.as_curl_command())

    ask()


def faults(case: Case, response: Response) -> Iterator[str]:
    """What is wrong with an answer, in words that are the same for the same fault."""
    status, headers = response.status_code, {name.lower(): values[0] for name, values in response.headers.items()}
    asked_to_hurry = any(name.lower() == "x-request-timeout-ms" for name in case.headers or {})
    if status >= 500 and not (status == 504 and asked_to_hurry):
        yield f"{status}: a server's error"
    if status >= 400 and headers.get("content-type") != "application/problem+json":
        yield f"{status}: not problem+json but {headers.get('content-type')}"
    if "x-request-id" not in headers:
        yield f"{status}: without X-Request-ID"
    if status in (429, 503) and "retry-after" not in headers:
        yield f"{status}: without Retry-After"
    try:
        case.validate_response(response, checks=CHECKS)
    except FailureGroup as group:
        for failure in group.exceptions:
            yield f"{status}: {_words(failure)}"
    except Failure as failure:
        yield f"{status}: {_words(failure)}"


def informed(document: dict[str, Any], bundles: list[dict[str, Any]]) -> dict[str, Any]:
    """The document with the service's own bundles and labels, and few images: what it allows is mostly answered."""
    made = copy.deepcopy(document)
    names = [bundle["name"] for bundle in bundles] + [bundle["digest"] for bundle in bundles]
    labels = sorted({label for bundle in bundles for label in bundle["class_names"]})
    known = {"bundle": names, "label": labels, "model": names, "version": ["latest"]}
    for item in made["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path" and parameter["name"] in known:
                    parameter["schema"] = {"type": "string", "enum": known[parameter["name"]]}
                elif parameter["name"] in _MILD:
                    parameter["schema"] = {"type": "string", "pattern": _MILD[parameter["name"]]}
    number = {"type": "integer", "minimum": 0, "maximum": MOST_IMAGES // max(len(labels), 1)}
    some = {"type": "object", "properties": dict.fromkeys(labels, number), "additionalProperties": False}
    for schema in made["components"]["schemas"].values():
        properties = schema.get("properties", {})
        if "counts" in properties and schema.get("additionalProperties") is False:  # a request's
            properties["counts"] = {"anyOf": [{**some, "minProperties": 1}, number]}
            properties["bundle"] = {"type": "string", "enum": names}
            properties |= {name: {"enum": [value]} for name, value in _PLAIN.items() if name in properties}
            schema["required"] = sorted({*schema.get("required", []), "bundle", "counts"})
    return made


def table(accounts: dict[str, Account]) -> str:
    lines = [f"{'operation':<66}{'cases':>7}  answers"]
    for label, account in accounts.items():
        answers = ", ".join(f"{status} {n}×" for status, n in sorted(account.statuses.items()))
        lines.append(f"{label:<66}{account.cases:>7}  {answers}")
        lines += [f"    {fault}\n        {request}" for fault, request in account.faults.items()]
    cases = sum(account.cases for account in accounts.values())
    wrong = sum(len(account.faults) for account in accounts.values())
    lines.append(f"{cases} cases, {len(accounts)} operations, {wrong} kinds of faults")
    return "\n".join(lines)


def _words(failure: Failure) -> str:
    return " ".join(f"{failure.title}: {failure.message}".split())[:300]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the service, without a path")
    parser.add_argument("--cases", type=int, default=10_000)
    options = parser.parse_args()
    accounts = fuzz(options.url, options.cases)
    print(table(accounts))
    return int(any(account.faults for account in accounts.values()))


if __name__ == "__main__":
    sys.exit(main())
