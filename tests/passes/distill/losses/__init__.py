"""Tests of passes/distill/losses."""
