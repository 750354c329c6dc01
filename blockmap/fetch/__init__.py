"""What brings verified chunks and nodes to the host, and keeps them there.

Imports `store`, `format` and `errors`. Bytes come from the store in range requests, are checked against their digests, go
into the host's cache, and from there straight into the buffers of readers. Records and names that the store confirmed are
kept beside it, for when the store is away.
"""
