"""Count words, lines and sentences of a text: JSON on standard input, JSON on standard output."""

import json
import re
import sys

WORDS_PER_MINUTE = 230

text = json.load(sys.stdin)["text"]
words = len(text.split())
counted = {
    "words": words,
    "lines": len(text.splitlines()),
    "sentences": len(re.findall(r"[.!?]+(?:\s|$)", text)),
    "reading_minutes": round(words / WORDS_PER_MINUTE, 1),
}
sys.stdout.write(json.dumps(counted))
