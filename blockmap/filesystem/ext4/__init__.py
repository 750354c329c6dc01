"""ext4 written from a merged tree as a stream of blocks, and the small reader that checks and compares it.

Imports `image.merge`, `image.member` and `errors`. Members come from a source's layers; blocks and cuts go to a sink, in
an order in which contents are never held: contents as they come, metadata when all layers are known.
"""
