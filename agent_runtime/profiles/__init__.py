"""Profiles that come with the factory: a generic agent, and the crew of the demo mission."""
