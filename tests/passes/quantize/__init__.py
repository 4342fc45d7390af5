"""Tests of fxopt.passes.quantize."""
