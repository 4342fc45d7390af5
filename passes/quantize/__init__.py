"""Passes that move a program to integer arithmetic."""
