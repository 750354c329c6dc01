"""Everything about the link to the store: ranges, bandwidth, outages, open connections, and records that this host has cached.

Imports `store` and lower layers. `fetch` and `replay` read bytes here, which are not verified yet; the server reads records
and names, which come from the host's disk while the store is away.
"""
