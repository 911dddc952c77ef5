"""`hyperfactory secret` keeps values that it never prints."""

from __future__ import annotations

from factory_cli.failures import Exit


async def test_a_secret_is_kept_listed_and_forgotten_without_being_shown(cli):
    kept = await cli("secret", "set", "model-key", stdin="s3cr3t\n")
    listed = await cli("secret", "list", "--json")
    assert (kept.code, kept.out) == (Exit.OK, "secret 'model-key' is kept\n")
    assert listed.json == {"secrets": [{"name": "model-key"}]}
    assert (cli.home / "secrets" / "model-key").read_text() == "s3cr3t"
    gone = await cli("secret", "delete", "model-key")
    assert gone.code == Exit.OK
    assert "s3cr3t" not in kept.out + kept.err + listed.out + gone.out


async def test_a_secret_that_cannot_be_is_refused(cli):
    ended = await cli("secret", "set", "Model Key", stdin="s3cr3t")
    assert ended.code == Exit.INVALID
    assert "s3cr3t" not in ended.err
    assert (await cli("secret", "delete", "absent")).code == Exit.NOT_FOUND
