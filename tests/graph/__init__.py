"""Tests of fxopt/graph, one file a module."""
