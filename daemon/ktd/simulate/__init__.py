"""Replays recorded routing through strategies and policies, without an engine."""
