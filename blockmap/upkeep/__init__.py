"""Upkeep: examines whole versions in the store, past any cache.

Imports `store` and what lies below. `cli` calls it, and prints what was found.
"""
