"""`python -m tunesmith`, which is what torchrun starts."""

from .cli import main

main()
