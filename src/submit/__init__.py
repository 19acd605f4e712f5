"""Submission to the leaderboard: a bundle for Kaggle's machines, a notebook, and the kaggle program."""
