"""The record of a run: append-only Parquet parts in a run folder, on a disk or in an object store."""
