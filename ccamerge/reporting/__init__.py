"""What happened, as numbers, text, pictures, pages and files."""
