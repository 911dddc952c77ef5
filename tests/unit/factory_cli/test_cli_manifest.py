"""Every way in which a manifest cannot be read is told with the field's path."""

from __future__ import annotations

import json

import pytest

from factory_cli import manifest
from factory_cli.__main__ import hoist
from wire.errors import Invalid

MEMBER = {"name": "coder", "profile": "coder"}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"name": "x", "membrs": []}', "manifest.membrs"),
        ('{"name": "x", "members": [{"name": "a", "replica": 2}]}', "manifest.members[0].replica"),
        ('{"name": "x", "network": {"allowEgres": true}}', "manifest.network.allowEgres"),
        ('{"name": "x", "ttl": "soon"}', "manifest.ttl"),
        ('{"name": 7}', "manifest.name"),
        ('{"name": "x", "name": "y"}', "name"),
        ("[]", "manifest"),
        ("{", "manifest"),
        (json.dumps({"name": "x" * manifest.MANIFEST_MAX_BYTES}), "manifest"),
    ],
)
def test_a_bad_manifest_names_the_field(text, field):
    with pytest.raises(Invalid) as caught:
        manifest.parse(text)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_what_people_write_is_understood():
    wish = manifest.parse(
        json.dumps({"name": "x", "members": [MEMBER], "ttl": 90, "policy": {"onMemberFailure": "DISBAND"}})
    )
    assert (wish.ttl.seconds, wish.policy.on_member_failure) == (90, 2)
    assert not wish.members[0].HasField("replicas")


def test_global_options_may_stand_anywhere_before_two_dashes():
    assert hoist(["crew", "list", "--json", "--home", "h"]) == ["--json", "--home", "h", "crew", "list"]
    assert hoist(["call", "X", "--client=c", "--", "--json"]) == ["--client=c", "call", "X", "--", "--json"]
