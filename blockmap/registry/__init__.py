"""A registry over the store: docker, containerd, podman and skopeo pull images from it as from any other.

`app` speaks HTTP, `offers` chooses the manifest of a version that can be given, `served` remembers what it gave, and `spool` has
the blobs while they are made and sent. Nothing of an image is kept but for that: layers are made again from chunks.
"""
