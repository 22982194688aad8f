"""The machinery of the book: figures, diagrams, numbers in the prose, the last chapter's stage."""
