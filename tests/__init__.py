"""Tests by room; `helpers` is what they share. A package, since child processes import the helpers too."""
