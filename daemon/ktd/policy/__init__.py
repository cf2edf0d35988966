"""Policies: what to move while serving, decided from what the router chose so far."""
