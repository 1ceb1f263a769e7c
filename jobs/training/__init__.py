"""What the pocket pair is made of: its text, its tokenizer, its model card."""
