"""`python -m tunesmith`, which is what torchrun and accelerate launch start."""

from .cli import main

main()
