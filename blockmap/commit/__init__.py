"""Commits of clones: a moment that was captured on this host becomes a version in the store.

`publisher` is a process of its own, beside the server's, so that chunks are cut and compressed under an interpreter's lock that
no read waits for. `task` has what the two tell each other. Imports publish, learn and volume; data comes from a clone's layers,
and from the server, which has most of the nodes that a commit reads in its cache; it goes to the store.
"""
