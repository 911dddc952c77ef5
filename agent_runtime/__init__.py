"""The small server inside every sandbox: it takes an identity on and works as that agent."""

__version__ = "0.1.0"
