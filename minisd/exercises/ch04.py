"""Checkers for the exercises of chapter 4."""
