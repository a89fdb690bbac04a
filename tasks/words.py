"""Counts in sentences for a person: one image, two images."""


def counted(number: int, thing: str, things: str | None = None) -> str:
    """The number with its noun, such as "1 mask" and "1,204 masks". things: plural, where it takes more than an s."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"
