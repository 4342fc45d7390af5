"""Tests of passes/prune."""
