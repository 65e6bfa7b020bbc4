"""What must hold in every simulated world, one promise per file; `book.py` lists them."""
