"""Checkers for the exercises of chapter 3."""
