"""The machinery of the book: figures, numbers in the text, and what other libraries need."""
