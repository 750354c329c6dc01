"""Images in and out: sources and their layers, the merge, the ext4 writer and reader, the import from end to end.

Imports `publish` and what lies below. Bytes come from archives, directories and registries; blocks go to `publish`.
"""
