"""From blocks to a version: chunks, deduplication, packs, tree, records, name; one way for everything that is written.

Imports `store` and `format`. Blocks and cuts come from `image` (later also from commits); packs, then the version, then
the name go to the store, in this order, so that a crash leaves garbage and nothing else.
"""
