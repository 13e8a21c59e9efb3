"""Chaos: tiny campaigns, killed again and again, must end as if nothing had happened (docs/measurements/chaos.md)."""
