"""This machine's side: the supervisor of nbdkit, devices, mounts, containers, and what is attached where.

Imports `store` and `errors`, and never the plugin: it talks to a server through its control socket.
"""
