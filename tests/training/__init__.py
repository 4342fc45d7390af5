"""Tests of fxopt.train and its parts."""
