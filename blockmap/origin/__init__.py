"""The link to the store: ranges, what the link gives, outages, connections kept open, and the records that this host knows.

Imports `store` and what lies below. `fetch` and `replay` ask here for bytes; what arrives is not verified yet.
"""
