"""Layers merged into trees of inodes, and ext4 volumes written from these trees and read back.

Imports `format` and `errors`. Members come from `image`; blocks and cuts go to a sink, which `publish` provides.
"""
