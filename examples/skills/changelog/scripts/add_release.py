"""Put a release at the top of CHANGELOG.md: JSON on standard input, the path on standard output."""

import json
import sys
from pathlib import Path

KINDS = ("added", "changed", "fixed", "removed")
TITLE = "# Changelog\n"

release = json.load(sys.stdin)
file = Path("CHANGELOG.md")
before = file.read_text().removeprefix(TITLE) if file.exists() else ""
head = f"## {release['version']} ({release['date']})\n"
if f"## {release['version']} (" in before:
    sys.exit(f"release {release['version']} is there already")
parts = [
    f"### {kind.capitalize()}\n" + "".join(f"- {e}\n" for e in release[kind])
    for kind in KINDS
    if release.get(kind)
]
file.write_text(TITLE + "\n" + "\n".join([head, *parts]) + before)
sys.stdout.write(json.dumps({"path": str(file), "version": release["version"]}))
