"""Derived tables: pure Polars queries over the journal. They can be deleted; `write_tables` makes them again."""
