"""A2A's methods, which another's contract declares: each has a row, each is written, and none may be forgotten."""

from __future__ import annotations

import inspect

import pytest

from factory_server.api.a2a import policy
from factory_server.api.a2a.servicer import A2AServicer
from wire.policy import PolicyTable, Principal, method_path, needs_token

METHODS = list(policy.SERVICE.methods)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_has_a_row_that_asks_for_a_scope(method):
    [row] = [row for row in policy.rows() if row.method == method_path(method)]
    assert row.scopes
    assert row.principals == {Principal.OPERATOR}
    assert needs_token(row, Principal.OPERATOR)
    assert method.server_streaming or row.default_deadline_s > 0 or method.name == "SendMessage"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_is_written(method):
    written = getattr(A2AServicer, method.name)
    assert written.__qualname__.startswith("A2AServicer.")
    streams = inspect.isasyncgenfunction(written)
    assert streams == method.server_streaming
    assert streams or inspect.iscoroutinefunction(written)


def test_a_method_without_a_row_stops_the_server():
    rows = [row for row in policy.rows() if not row.method.endswith("/SendMessage")]
    with pytest.raises(ValueError, match="SendMessage"):
        PolicyTable.from_services(foreign={policy.SERVICE: rows})
    assert PolicyTable.from_services(foreign={policy.SERVICE: policy.rows()}).row(rows[0].method) == rows[0]
