"""What runs inside a cell's own process."""
