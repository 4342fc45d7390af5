"""Tests of export, file by file."""
