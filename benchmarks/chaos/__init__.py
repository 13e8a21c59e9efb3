"""Chaos: tiny campaigns that are killed again and again, and must end as if nothing had happened (docs/chaos.md)."""
