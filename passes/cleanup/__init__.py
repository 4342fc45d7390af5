"""Passes that simplify a program and keep its meaning."""
