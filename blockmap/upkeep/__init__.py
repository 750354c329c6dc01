"""What looks at whole versions in the store, past any cache.

Imports `store` and what lies below. `cli` asks, and prints what was found.
"""
