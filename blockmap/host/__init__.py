"""Everything on this host outside of the server: the supervisor of nbdkit, devices, mounts, containers, attachments.

Imports `store` and `errors`, and never the plugin: it talks to a server through its control socket.
"""
