"""The supervisor of a server: its sockets, its nbdkit, and how that is started again."""
