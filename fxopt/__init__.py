"""fxopt: compile a PyTorch model for deployment by rewriting its graph."""

from fxopt.version import __version__

__all__ = ["__version__"]
