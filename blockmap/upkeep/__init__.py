"""Upkeep: collects garbage, checks stores and mends them, compares versions; all of it past any cache.

Imports `learn` (for bundles), `publish` and lower layers. `cli` calls it, and prints what was found.
"""
