"""A crew's skill packs as MCP's skills extension has them: gathered, each pack once, its files read by URI.

A pack is at `skill://<32 hex digits of its digest>/<name>/`, always: what it is decides, not who has it. So a name
is one entry however many agents have the pack, two versions are two, no coming or going of an agent changes a URI,
and what a URI leads to never changes: a file always fits the digest that was listed. Who has it stands in `_meta`.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Final

from factory_server.api.http.mcp_asked import Asked
from factory_server.api.http.mcp_lists import META, after
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import NotFound
from factory_server.core.skills import ENTRY, Pack, PackFile, SkillRef
from factory_server.services.tools_packs import CrewPacks, Library
from wire.mcp import forms, skills
from wire.mcp.errors import HANDSHAKE_RESOURCE_NOT_FOUND, INVALID_PARAMS, McpError, invalid_params
from wire.mcp.messages import Json

DIGEST_CHARS: Final = 32
"""128 bits: nobody finds two packs that share them."""
FILES_MAX: Final = 1000
"""Of one page, but for a pack that has more by itself (at most 512 are taken)."""
AGENTS_SHOWN_MAX: Final = 50
URI_MAX_CHARS: Final = 2048
CONTENT_TTL_MS: Final = 3_600_000
"""What a URI leads to is always the same."""


class Skills:
    """Those of every crew. Whoever may ask a crew at all sees them: a scope says what may be done, not read."""

    def __init__(self, packs: CrewPacks, library: Library, codec: CursorCodec) -> None:
        self._packs = packs
        self._library = library
        self._codec = codec

    async def list(self, asked: Asked) -> Json:
        """`skills/list`: by name and digest, whole entries."""
        known = await self._known(asked.crew)
        begin = after(self._codec, _scope(asked), asked.message.params.get("cursor"))
        shown: list[SkillRef] = []
        files = 0
        cursor = ""
        for ref, pack in known.items():
            if str(ref) <= begin:
                continue
            files += len(pack.files)
            if shown and files > FILES_MAX:
                cursor = str(shown[-1])
                break
            shown.append(ref)
        agents = self._packs.of_crew(asked.crew)
        listed = [entry(known[ref], agents.get(ref, ())) for ref in shown]
        return forms.cached({"skills": listed, **self._next(asked, cursor)})

    async def get(self, asked: Asked) -> Json:
        """`skills/get`."""
        uri = _uri(asked)
        for ref, pack in (await self._known(asked.crew)).items():
            if uri == uri_of(pack, ENTRY):
                return forms.cached({"skill": entry(pack, self._packs.of_crew(asked.crew).get(ref, ()))})
        raise invalid_params(f"there is no skill '{uri[:200]}'")

    async def resources(self, asked: Asked) -> Json:
        """`resources/list`: every file of every pack."""
        begin = after(self._codec, _scope(asked), asked.message.params.get("cursor"))
        known = (await self._known(asked.crew)).values()
        files = [(f"{pack.ref}/{file.path}", pack, file) for pack in known for file in pack.files]
        left = sorted((one for one in files if one[0] > begin), key=lambda one: one[0])
        shown = left[:FILES_MAX]
        cursor = shown[-1][0] if len(left) > FILES_MAX else ""
        listed = [resource(pack, file) for _, pack, file in shown]
        return forms.cached({"resources": listed, **self._next(asked, cursor)})

    async def read(self, asked: Asked) -> Json:
        """`resources/read`: a file as the pack's manifest has it."""
        uri = _uri(asked)
        try:
            pack, path = _find(await self._known(asked.crew), uri)
            data = await self._library.file(pack, path)
        except NotFound as error:
            code = INVALID_PARAMS if asked.stateless else HANDSHAKE_RESOURCE_NOT_FOUND
            raise McpError(code, "resource not found", {"uri": uri[:URI_MAX_CHARS]}) from error
        content = await asyncio.to_thread(_content, data)
        about = {"uri": uri, "mimeType": skills.mime_type(path)}
        return forms.cached({"contents": [about | content]}, ttl_ms=CONTENT_TTL_MS)

    async def _known(self, crew: str) -> Mapping[SkillRef, Pack]:
        refs = list(self._packs.of_crew(crew))
        found = await self._library.packs(refs)
        return {ref: found[ref] for ref in refs if ref in found}

    def _next(self, asked: Asked, cursor: str) -> Json:
        return {"nextCursor": self._codec.encode(_scope(asked), cursor)} if cursor else {}


def uri_of(pack: Pack, path: str) -> str:
    """A file's, the same in every crew."""
    digest = pack.digest.partition(":")[2]
    return f"{skills.SCHEME}{digest[:DIGEST_CHARS]}/{pack.name}/{path}"


def entry(pack: Pack, agents: Sequence[str]) -> Json:
    """A pack as the extension lists it, and which agents have it."""
    meta = {META + "skill": str(pack.ref), META + "agents": list(agents[:AGENTS_SHOWN_MAX])}
    if len(agents) > AGENTS_SHOWN_MAX:
        meta[META + "moreAgents"] = str(len(agents) - AGENTS_SHOWN_MAX)
    return skills.entry(uri_of(pack, ""), pack.frontmatter, pack.files) | {"_meta": meta}


def resource(pack: Pack, file: PackFile) -> Json:
    """A file as a resource; SKILL.md has the pack's own name and description."""
    shown: Json = {
        "uri": uri_of(pack, file.path),
        "name": file.path,
        "mimeType": skills.mime_type(file.path),
        "size": file.size,
    }
    return shown | {"name": pack.name, "description": pack.description} if file.path == ENTRY else shown


def _find(known: Mapping[SkillRef, Pack], uri: str) -> tuple[Pack, str]:
    for pack in known.values():
        begin = uri_of(pack, "")
        if uri.startswith(begin):
            return pack, uri.removeprefix(begin)
    raise NotFound(f"no resource '{uri[:200]}'", resource_type="resource", resource_name=uri[:200])


def _content(data: bytes) -> Json:
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"blob": base64.b64encode(data).decode()}


def _uri(asked: Asked) -> str:
    uri = asked.message.params.get("uri")
    if not isinstance(uri, str):
        raise invalid_params("params.uri is required, a string")
    return uri


def _scope(asked: Asked) -> str:
    return f"mcp-{asked.message.method}|{asked.crew}"
