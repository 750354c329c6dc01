"""From blocks to a version: chunks, deduplication, packs, tree, records, name; one way for everything that is written.

Imports `store`, `format` and `errors`. Blocks and cuts come from `image`; packs, then the version, then the name go to the
store, in this order, so that a crash leaves garbage and nothing else. What is already there is found by the hooks of the
store's catalogue.
"""
