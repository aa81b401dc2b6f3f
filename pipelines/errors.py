"""What can go wrong by a user's choice or a bad file. A message names the field, its value and the remedy."""

from __future__ import annotations


class SfumatoError(ValueError):
    """Base of the errors that a user can mend. Anything else that is raised is a defect of ours."""


class BadInput(SfumatoError):
    """A setting that cannot be used. `field` is its name, so that a form can point at it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class NoSite(BadInput):
    """A technique needs a part of the network that this network does not have."""

    def __init__(self, message: str) -> None:
        super().__init__("patches", message)


class BadWeights(SfumatoError):
    """A checkpoint that is damaged, incomplete, unsafe, or does not fit its own config."""


class NotFinite(SfumatoError):
    """The numbers left the range of their type: NaN or infinity where an image should be."""
