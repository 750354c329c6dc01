"""The process that attaches devices for all commands of this host, `blockmap devices`, and its client.

The client asks through a socket in the state's folder, and starts the process where none runs. What it imports is time that
every start waits for.
"""
