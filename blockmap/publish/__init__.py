"""From blocks to a version: chunks, deduplication, packs, tree, record, name; one way for everything that is written.

Imports `store`, `format` and `errors`. `publication` is the recipe: who has blocks (`image`) gives them and their cuts, and
names what else is to be derived; packs, then the version, then the name go to the store, so that a crash leaves garbage
and nothing else. The hooks of the store's catalogue find chunks that are there already.
"""
