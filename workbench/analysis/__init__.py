"""Which layers reason (importance) and which layers moved (weight change)."""
