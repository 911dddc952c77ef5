"""A skill pack: what an archive has to be to become one, its canonical manifest, its digest, and its tools."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from factory_server.core import skill_frontmatter
from factory_server.core.errors import FieldViolation, Invalid, SkillRefused
from factory_server.core.scopes import SCOPES, by_effect, width
from factory_server.core.skill_archive import Entry, refused
from factory_server.core.skill_frontmatter import Frontmatter

ENTRY: Final = "SKILL.md"
MANIFEST_HEAD: Final = "hyperfactory-skill-pack 1\n"
PREFIX: Final = "hyperfactory/"
TOOLS_KEY: Final = f"{PREFIX}tools"
TOOLS_MAX: Final = 32
TOOL_DESCRIPTION_CHARS_MAX: Final = 1024
SCHEMA_DEPTH_MAX: Final = 8
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
PLAIN, EXECUTABLE = 0o644, 0o755
RUNNABLE_SUFFIXES: Final = (".py", ".sh")
SCRIPT_FOLDERS: Final = ("scripts/", "bin/")
SCHEMA_KEYWORDS: Final = frozenset(
    {
        *("description", "title", "default", "examples", "$schema", "type"),
        *("properties", "required", "additionalProperties", "items", "enum", "minItems", "maxItems"),
        *("minLength", "maxLength", "minimum", "maximum"),
    }
)
"""What the agents' runtime checks; a bound that nobody enforces is worse than none."""

_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_REQUIRED: Final = frozenset({"name", "description", "script"})
_OPTIONAL: Final = frozenset({"input_schema", "read_only", "scope", "title"})


@dataclass(frozen=True, slots=True)
class SkillRef:
    """A pinned pack."""

    name: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}"


@dataclass(frozen=True, slots=True)
class PackFile:
    """One file of a pack as its manifest tells it."""

    path: str
    mode: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PackTool:
    """A script that is offered as a tool."""

    name: str
    description: str
    script: str
    input_schema: Mapping[str, Any]
    read_only: bool
    scope: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack, whole but for its content."""

    name: str
    digest: str
    frontmatter: Frontmatter
    files: Sequence[PackFile]
    tools: Sequence[PackTool]

    @property
    def ref(self) -> SkillRef:
        """How profiles pin it."""
        return SkillRef(self.name, self.digest)

    @property
    def description(self) -> str:
        """What it is for."""
        return str(self.frontmatter.get("description", ""))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class PackRow:
    """A pack as stored: signed by the factory's key of this id."""

    pack: Pack
    signature: bytes
    key_id: str
    publisher: str
    created_at: datetime | None = None
    number: int = 0

    @property
    def place(self) -> str:
        """Its place in lists: by name, newest first."""
        return f"{self.pack.name}|{self.number}"


def make_pack(entries: Iterable[Entry]) -> tuple[Pack, bytes]:
    """The pack that these files are, and its content: the files' bytes one after the other. SkillRefused."""
    rooted, folder = _rooted(sorted(entries, key=lambda entry: entry.path))
    content = {entry.path: entry.data for entry in rooted}
    files = [
        PackFile(
            entry.path,
            EXECUTABLE if entry.executable else PLAIN,
            len(entry.data),
            hashlib.sha256(entry.data).hexdigest(),
        )
        for entry in rooted
    ]
    if ENTRY not in content:
        raise refused("no-skill-md", f"it has no {ENTRY}")
    frontmatter = skill_frontmatter.read(content[ENTRY])
    if folder and folder != frontmatter["name"]:
        raise refused("name", f"its directory is '{folder}', its name '{frontmatter['name']}'")
    pack = Pack(frontmatter["name"], digest_of(files), frontmatter, files, _tools(frontmatter, files))
    return pack, b"".join(content[file.path] for file in files)


def read_pack(files: Sequence[PackFile], content: bytes) -> Pack:
    """The pack of stored files; whoever stored them may have been anybody, so everything is checked again."""
    pieces, position = [], 0
    for file in files:
        pieces.append(Entry(file.path, file.mode == EXECUTABLE, content[position : position + file.size]))
        position += file.size
    pack, _ = make_pack(pieces)
    return pack


def describe(name: str, digest: str, frontmatter: Frontmatter, files: Sequence[PackFile]) -> Pack:
    """A stored pack without its content, as it says itself to be: `is_sound` and `is_itself` check it."""
    try:
        tools = _tools(frontmatter, files)
    except (
        SkillRefused
    ):  # changed in the store, or taken by rules of before: lists show it, nobody may use it
        tools = []
    return Pack(name, digest, frontmatter, files, tools)


def is_sound(pack: Pack) -> bool:
    """Whether its files are those of its digest."""
    return digest_of(pack.files) == pack.digest


def is_itself(pack: Pack, entry: bytes) -> bool:
    """Whether a sound pack says of itself what its SKILL.md says: no digest covers what is kept beside files."""
    file = next((file for file in pack.files if file.path == ENTRY), None)
    if file is None or hashlib.sha256(entry).hexdigest() != file.sha256:
        return False
    try:
        frontmatter = skill_frontmatter.read(entry)
        tools = _tools(frontmatter, pack.files)
    except SkillRefused:
        return False
    return (frontmatter, frontmatter["name"], tools) == (pack.frontmatter, pack.name, pack.tools)


def digest_of(files: Sequence[PackFile]) -> str:
    """`sha256:…` of the canonical manifest: a line for each file, by path."""
    lines = (f"{f.mode:04o} {f.size} {f.sha256} {f.path}\n" for f in sorted(files, key=lambda f: f.path))
    return "sha256:" + hashlib.sha256((MANIFEST_HEAD + "".join(lines)).encode()).hexdigest()


def parse_ref(text: str, field: str) -> SkillRef:
    """A pin as `name@sha256:…`. Invalid, naming the field."""
    name, at, digest = text.partition("@")
    if not (at and skill_frontmatter.is_name(name) and _DIGEST.fullmatch(digest)):
        raise bad_ref(field, f"'{text[:100]}' is no pinned skill pack (name@sha256:…)", "SKILL_UNPINNED")
    return SkillRef(name, digest)


def bad_ref(field: str, text: str, reason: str) -> Invalid:
    """A pin that cannot be used."""
    return Invalid(
        f"cannot use skill pack: {field}: {text}", violations=[FieldViolation(field, text, reason)]
    )


def pins(refs: Iterable[str], field: str) -> list[SkillRef]:
    """The pins of a list, each name once. Invalid."""
    found: list[SkillRef] = []
    names: set[str] = set()
    for place, text in enumerate(refs):
        ref = parse_ref(text, f"{field}[{place}]")
        if ref.name in names:
            raise bad_ref(f"{field}[{place}]", f"the pack '{ref.name}' is there already", "DUPLICATE")
        names.add(ref.name)
        found.append(ref)
    return found


def _rooted(entries: list[Entry]) -> tuple[list[Entry], str]:
    """The files relative to the pack: an archive holds them, or the one directory around them."""
    folders = {entry.path.partition("/")[0] for entry in entries}
    if len(folders) != 1 or any("/" not in entry.path for entry in entries):
        return entries, ""
    folder = folders.pop()
    return [Entry(e.path.partition("/")[2], e.executable, e.data) for e in entries], folder


def _tools(frontmatter: Frontmatter, files: Sequence[PackFile]) -> list[PackTool]:
    metadata = frontmatter.get("metadata", {})
    for key in metadata:
        if key.startswith(PREFIX) and key != TOOLS_KEY:
            raise refused("metadata", f"metadata has an unknown key '{key[:60]}'")
    declared = _json(metadata[TOOLS_KEY]) if TOOLS_KEY in metadata else []
    if not isinstance(declared, list) or len(declared) > TOOLS_MAX:
        raise refused("tools", f"'{TOOLS_KEY}' is no JSON list of at most {TOOLS_MAX} tools")
    by_path = {file.path: file for file in files}
    tools = [_tool(item, by_path) for item in declared]
    if len({tool.name for tool in tools}) < len(tools):
        raise refused("tools", "two tools have one name")
    return _narrowed(tools, frontmatter.get("allowed-tools"))


def _narrowed(tools: list[PackTool], allowed: str | None) -> list[PackTool]:
    """Of a pack's own tools those that it allows itself. What else it names is granted by nobody here."""
    if allowed is None:
        return tools
    names = set(allowed.split())
    return [tool for tool in tools if tool.name in names]


def _tool(item: Any, files: Mapping[str, PackFile]) -> PackTool:
    if not isinstance(item, dict) or not _REQUIRED <= item.keys() <= _REQUIRED | _OPTIONAL:
        raise refused("tools", f"a tool is not made of {', '.join(sorted(_REQUIRED | _OPTIONAL))}")
    texts = {key: item.get(key, "") for key in (*_REQUIRED, "title", "scope")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise refused("tools", "a tool's texts are no texts")
    name, read_only = texts["name"], item.get("read_only", False)
    if not _TOOL_NAME.fullmatch(name):
        raise refused("tools", f"'{name[:64]}' is no name of a tool")
    if not 1 <= len(texts["description"]) <= TOOL_DESCRIPTION_CHARS_MAX or len(texts["title"]) > 100:
        raise refused("tools", f"the description or title of tool '{name}' is empty or too long")
    if not isinstance(read_only, bool):
        raise refused("tools", f"'read_only' of tool '{name}' is neither true nor false")
    schema = item.get("input_schema", {"type": "object"})
    _check_schema(name, schema)
    return PackTool(
        name,
        texts["description"],
        _script(name, texts["script"], files),
        schema,
        read_only,
        _scope(name, texts["scope"], read_only=read_only),
        texts["title"],
    )


def _scope(name: str, scope: str, *, read_only: bool) -> str:
    least = by_effect(read_only=read_only)
    scope = scope or least
    if scope not in SCOPES or width(scope) < width(least):
        raise refused("tools", f"the scope of tool '{name}' is none, or too narrow for what it does")
    return scope


def _script(name: str, script: str, files: Mapping[str, PackFile]) -> str:
    file = files.get(script)
    if file is None or not script.startswith(SCRIPT_FOLDERS):
        raise refused("tools", f"the script of tool '{name}' is no file in {' or '.join(SCRIPT_FOLDERS)}")
    if file.mode != EXECUTABLE and not script.endswith(RUNNABLE_SUFFIXES):
        raise refused("tools", f"the script of tool '{name}' is neither executable nor .py nor .sh")
    return script


def _check_schema(name: str, schema: Any) -> None:
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise refused("tool-schema", f"the input of tool '{name}' is no schema of an object")
    _check_keywords(name, schema)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise refused("tool-schema", f"the input schema of tool '{name}': {error.message[:120]}") from error


def _check_keywords(name: str, schema: Any, depth: int = 1) -> None:
    if not isinstance(schema, dict) or depth > SCHEMA_DEPTH_MAX:
        raise refused("tool-schema", f"the input schema of tool '{name}' is no object, or too deep")
    if unknown := sorted(schema.keys() - SCHEMA_KEYWORDS):
        raise refused("tool-schema", f"the input schema of tool '{name}' says '{unknown[0][:40]}'")
    if schema.get("$schema", DIALECT) != DIALECT:
        raise refused("tool-schema", f"the input schema of tool '{name}' is not of {DIALECT}")
    properties = schema.get("properties", {})
    inner = [*properties.values()] if isinstance(properties, dict) else []
    for part in inner + ([schema["items"]] if "items" in schema else []):
        _check_keywords(name, part, depth + 1)


def _json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key comes twice")
        return found

    def never(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    def finite(number: str) -> float:
        value = float(number)
        return value if math.isfinite(value) else never(number)

    try:
        found = json.loads(text, object_pairs_hook=once, parse_constant=never, parse_float=finite)
        json.dumps(found, ensure_ascii=False).encode()  # half a character is no text
    except (ValueError, RecursionError) as error:
        raise refused("tools", f"'{TOOLS_KEY}' is no JSON: {type(error).__name__}") from error
    return found
