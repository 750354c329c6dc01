"""Everything about the link to the store: ranges, bandwidth, outages, open connections, and records that this host has cached.

Imports `store` and what lies below. `fetch` and `replay` ask here for bytes, which are not verified yet; the server asks for
records and names, which it gets from the host's disk while the store is away.
"""
