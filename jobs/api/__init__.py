"""What `import oomline` offers. The package `oomline` re-exports it; the command line calls the same functions."""
