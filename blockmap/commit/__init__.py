"""Commits of clones: a moment that was captured on this host becomes a version in the store."""
