"""The worlds that the models of this book learn: digits, postcards, and your own images."""
