"""The program: `tunesmith`, and `python -m tunesmith`, which is what torchrun starts."""

from . import machine


def main() -> None:
    machine.start_without_caches()
    from .cli import main as verbs

    verbs()


if __name__ == "__main__":
    main()
