"""Tests of the cleanup passes."""
