"""Tests of passes/distill."""
