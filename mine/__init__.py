"""Architectures, criteria and variants of your own: see docs/own-parts.md."""
