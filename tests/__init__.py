"""Tests of fxopt; test_<module>.py mirrors the module it tests."""
