"""The Model Context Protocol as both its sides need it: revisions, messages, checks and forms, nothing heavy."""
