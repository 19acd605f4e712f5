"""Conversion of CT files in any layout to a prepared data set of 8-bit slice stacks."""
