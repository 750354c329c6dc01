"""The supervisor of a server: its sockets, its nbdkit, and what restarts it."""
