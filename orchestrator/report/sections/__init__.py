"""The sections of the report, one file each: tables and runs in, a `Section` of raw text out."""
