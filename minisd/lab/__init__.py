"""Experiments with any model of the book: recipes, evaluation, cards, scoreboard, drawing."""
