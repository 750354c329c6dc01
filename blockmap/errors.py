"""Every error that blockmap raises on purpose.

    BlockmapError
      UsageError            the request makes no sense: a name, an option or a source that cannot be parsed
      NotFound              a name, version or object that does not exist
      AlreadyExists         a create-only object that is there already
      NameMoved             a name was moved by somebody else since it was read
      Collected             what a writer relied on may have been deleted as garbage meanwhile
      FormatError           bytes that do not parse in the format expected
      Corrupt               bytes that do not match their name, or that are shorter than recorded
      Untrusted             a name or version that no key signed that this host trusts
      StoreError
        NotAStore           the location holds something else, or nothing
        StoreTooNew         the store needs a feature that this release does not know
        StoreRefused        the engine does not keep a promise that blockmap depends on
        CannotList          the engine has no listings, as web servers have none
        StoreReadOnly       the engine, or its credentials, cannot write
        StoreUnavailable    the engine did not answer, or has no room
      ImageError            an image that cannot be imported: damaged, hostile or unsupported
      HostError             this host lacks something: a tool, root, a device
        NoServer            no server answers at a socket
        DiskFull            a local disk has no room for what a client writes

A message says what happened, the value that caused it, and what to do about it.
"""


class BlockmapError(Exception):
    """Base of all errors with a message fit for a person."""


class UsageError(BlockmapError):
    pass


class NotFound(BlockmapError):
    pass


class AlreadyExists(BlockmapError):
    pass


class NameMoved(BlockmapError):
    pass


class Collected(BlockmapError):
    pass


class FormatError(BlockmapError):
    pass


class Corrupt(BlockmapError):
    pass


class Untrusted(BlockmapError):
    pass


class StoreError(BlockmapError):
    pass


class NotAStore(StoreError):
    pass


class StoreTooNew(StoreError):
    pass


class StoreRefused(StoreError):
    pass


class CannotList(StoreError):
    pass


class StoreReadOnly(StoreError):
    pass


class StoreUnavailable(StoreError):
    pass


class ImageError(BlockmapError):
    pass


class HostError(BlockmapError):
    pass


class NoServer(HostError):
    pass


class DiskFull(HostError):
    pass
