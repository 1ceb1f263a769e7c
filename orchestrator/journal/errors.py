"""What a run folder refuses, and why. Each message is one line with its remedy. Free of Polars: the command line
imports these to tell a refusal from a fault.
"""


class StoreError(Exception):
    """This place cannot be written or read; the message says what to do."""


class StoreFull(StoreError):
    """The disk (or the quota, or the file size limit) is full; nothing of the refused file is left."""


class FolderError(Exception):
    """This folder cannot take this run, or is no run folder."""


class FolderInUse(Exception):
    """Another driver runs on this folder; the message names its pid and host."""


class LockLost(Exception):
    """Another driver took the folder over while the store did not answer this one: this one must write no more."""


class SchemaTooNew(Exception):
    """Written by a newer oomline than this one."""


class JournalFull(Exception):
    """No room for another part. Everything appended before is on record and readable."""


#: What a command answers with one line and exit status 2.
REFUSALS = (StoreError, FolderError, FolderInUse, LockLost, SchemaTooNew, JournalFull)
