"""What a person or `ray job submit` starts: the command line, and sweep files to copy from."""
