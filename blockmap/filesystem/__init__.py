"""Trees of inodes as layers make them, and the ext4 volumes that hold them.

Imports `format` and `errors`. Members come from `image`; blocks and cuts go to a sink, which is `publish`.
"""
