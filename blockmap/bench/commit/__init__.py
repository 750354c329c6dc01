"""`blockmap bench commit`: how long a commit stops writers, and how long it takes to be seen, beside other ways to do the same.

volume        makes an image with one large file, whose tree is as full as if all of the file had been written
session       a server, a clone of that image, mounted, with a writer that syncs; commits, timed
fsync_writer  that writer, a program by itself
floor         what hashing and writing the bytes alone take
peers         an overlay's difference as a tar that is imported; podman commit
remote        commits over a link with a delay, whose requests are counted at the far side
command       the options, the order, the report
"""
