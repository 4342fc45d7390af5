"""The intermediate representation: a program of ATen ops, and what reads and rewrites it."""
