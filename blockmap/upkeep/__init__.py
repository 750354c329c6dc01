"""Upkeep: examines whole versions in the store, past any cache.

Imports `store` and lower layers. `cli` calls it, and prints what was found.
"""
