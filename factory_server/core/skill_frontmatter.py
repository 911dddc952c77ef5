"""Read the frontmatter of a SKILL.md as the Agent Skills specification has it: few fields, strings alone.

The part of YAML that is taken is small: mappings and plain values without anchors, aliases, tags or duplicate
keys. Values stay text as the specification's own validator reads them; nothing is constructed from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from factory_server.core.skill_archive import refused

FRONTMATTER_BYTES_MAX: Final = 32 * 1024
DEPTH_MAX: Final = 2
NAME_CHARS_MAX: Final = 64
DESCRIPTION_CHARS_MAX: Final = 1024
COMPATIBILITY_CHARS_MAX: Final = 500
FENCE: Final = "---"
_NAME: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_TEXTS: Final = ("name", "description", "license", "compatibility", "allowed-tools")
_FIELDS: Final = frozenset({*_TEXTS, "metadata"})

Frontmatter = Mapping[str, Any]
"""Text by field, and `metadata` as text by key."""


def read(document: bytes) -> Frontmatter:
    """The frontmatter of a SKILL.md, checked. SkillRefused."""
    try:
        text = document.decode("utf-8")
    except UnicodeDecodeError:
        raise refused("frontmatter", "SKILL.md is not UTF-8") from None
    found = _parsed(_fenced(text))
    if unknown := sorted(found.keys() - _FIELDS):
        raise refused("frontmatter-field", f"the frontmatter has an unknown field '{unknown[0][:40]}'")
    for field in _TEXTS:
        if field in found and not isinstance(found[field], str):
            raise refused("frontmatter-field", f"'{field}' is no text")
    _check(found)
    return found


def is_name(text: str) -> bool:
    """Whether a pack may be called so."""
    return len(text) <= NAME_CHARS_MAX and bool(_NAME.fullmatch(text))


def _fenced(text: str) -> str:
    lines = text.split("\n")
    fences = [n for n, line in enumerate(lines) if line.rstrip("\r") == FENCE]
    if not fences or fences[0] != 0 or len(fences) < 2:
        raise refused("frontmatter", "SKILL.md does not begin with a frontmatter between '---' lines")
    body = "\n".join(lines[1 : fences[1]])
    if len(body.encode()) > FRONTMATTER_BYTES_MAX:
        raise refused("frontmatter", f"the frontmatter has more than {FRONTMATTER_BYTES_MAX} bytes")
    return body


def _check(found: Frontmatter) -> None:
    name, description = found.get("name", ""), found.get("description", "")
    if not is_name(name):
        text = f"1 to {NAME_CHARS_MAX} of a-z, 0-9 and single hyphens within"
        raise refused("name", f"the name '{name[:NAME_CHARS_MAX]}' is not {text}")
    if not description.strip() or len(description) > DESCRIPTION_CHARS_MAX:
        raise refused("description", f"the description has not 1 to {DESCRIPTION_CHARS_MAX} characters")
    if "compatibility" in found and not 1 <= len(found["compatibility"]) <= COMPATIBILITY_CHARS_MAX:
        raise refused("compatibility", f"compatibility has not 1 to {COMPATIBILITY_CHARS_MAX} characters")
    metadata = found.get("metadata", {})
    if not isinstance(metadata, Mapping) or not all(isinstance(v, str) for v in metadata.values()):
        raise refused("metadata", "metadata is no mapping of texts")


def _parsed(body: str) -> dict[str, Any]:
    try:
        # Its scanner takes less than it should to be slow or deep: we read its events and build by ourselves.
        events = _checked(yaml.parse(body, Loader=yaml.BaseLoader))
        for opening in (yaml.StreamStartEvent, yaml.DocumentStartEvent):
            _expect(next(events), opening)
        found = _value(next(events), events, 1)
        for closing in (yaml.DocumentEndEvent, yaml.StreamEndEvent):
            _expect(next(events), closing)
    except (yaml.YAMLError, RecursionError) as error:
        problem = getattr(error, "problem", None) or type(error).__name__
        raise refused("frontmatter", f"the frontmatter is no YAML that we take: {problem}") from error
    if not isinstance(found, dict):
        raise refused("frontmatter", "the frontmatter is no mapping")
    return found


def _checked(events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise refused("frontmatter-alias", "the frontmatter has anchors or aliases")
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None):
            raise refused("frontmatter-tag", "the frontmatter has tags")
        yield event


def _expect(event: yaml.Event, kind: type[yaml.Event]) -> None:
    if not isinstance(event, kind):
        raise refused("frontmatter", "the frontmatter is not one YAML document")


def _text(value: str) -> str:
    """What can be stored and sent: an escape may write any character."""
    if any((letter < " " and letter not in "\n\t") or letter == "\x7f" for letter in value):
        raise refused("frontmatter-text", "the frontmatter has control characters")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise refused("frontmatter-text", "the frontmatter has halves of characters")
    return value


def _value(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Any:
    if isinstance(event, yaml.ScalarEvent):
        return _text(event.value)
    if not isinstance(event, yaml.MappingStartEvent) or depth > DEPTH_MAX:
        raise refused("frontmatter", "the frontmatter holds more than texts and a mapping of texts")
    found: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent):
            raise refused("frontmatter", "a key of the frontmatter is no text")
        if key.value in found:
            raise refused("frontmatter-duplicate", f"the frontmatter says '{key.value[:40]}' twice")
        found[_text(key.value)] = _value(next(events), events, depth + 1)
    return found
