from .convert import convert
from .generate import generate
from .utils import load

__all__ = ["convert", "generate", "load"]
