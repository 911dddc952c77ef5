"""What answers say: whole numbers as numbers are written, and refusals of HTTP's own in the contract's words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web

from factory_server.api.http.answers import encode
from factory_server.api.http.failures import refusal, unserved
from hyperfactory.v1 import crew_service_pb2


def document(answer: web.Response) -> dict[str, Any]:
    body = answer.body
    assert isinstance(body, bytes)
    return dict(json.loads(body))


def reason(answer: web.Response) -> str:
    (info,) = [d for d in document(answer)["details"] if d["@type"].endswith("ErrorInfo")]
    return str(info["reason"])


def test_whole_numbers_of_free_json_come_back_as_they_went() -> None:
    message = crew_service_pb2.GetContextResponse()
    message.entry.value.struct_value.update({"n": 1, "deep": [{"limit": 1024}], "half": 0.5, "huge": 1e300})
    assert b'"n":1,' in encode(message).replace(b"}", b",")  # wherever it stands among the others
    value = json.loads(encode(message))["entry"]["value"]
    assert value == {"n": 1, "deep": [{"limit": 1024}], "half": 0.5, "huge": 1e300}
    assert [type(value[name]) for name in ("n", "half", "huge")] == [int, float, float]


def test_a_verb_that_is_not_served_is_told_from_a_method_of_later() -> None:
    answer = unserved("PUT", web.HTTPMethodNotAllowed("PUT", ["DELETE", "GET"]))
    assert (answer.status, answer.headers["Allow"], reason(answer)) == (
        405,
        "DELETE,GET",
        "RESOURCE_NOT_FOUND",
    )
    assert document(answer)["message"] == "PUT is not served at this path, DELETE, GET is"


@pytest.mark.parametrize(
    ("code", "said"), [(400, "MALFORMED_MESSAGE"), (415, "MALFORMED_MESSAGE"), (413, "LIMIT_REACHED")]
)
def test_what_is_no_message_says_so(code: int, said: str) -> None:
    assert reason(refusal(code, "x")) == said
