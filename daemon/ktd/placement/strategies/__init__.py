"""Placement strategies: pure functions, one file each."""
