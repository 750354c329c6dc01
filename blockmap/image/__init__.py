"""Images: sources with their layers, the import from end to end, and the comparison of a volume with its image.

Imports `learn`, `publish` and below. Bytes come from archives, directories and registries; blocks go to `publish`.
"""
