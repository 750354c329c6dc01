"""Commits of clones: a moment that was captured on this host becomes a version in the store."""

CONFLICT_STATUS = 3
"""The exit status of the publisher where trying again does not help, so that a person must decide: the name has moved on."""
