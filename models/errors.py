"""Every error that dipnet raises on purpose. Each names the thing that is wrong and what to do next.

DipnetError
├── BadInput           what the caller gave cannot be used             (exit code 2)
│   ├── NotFound       a named thing that does not exist
│   ├── IllegalMove    a state that cannot follow the present one
│   └── BadSettings    an environment variable or .env entry is wrong
├── Incompatible       two things that must not meet: other encoder's vectors, a newer database   (exit code 3)
├── CorruptData        stored bytes are not what was written           (exit code 4)
└── Unavailable        an outside system did not answer or refused us  (exit code 5)
    └── Collided       another dipnet wrote the same rows first: what is there is kept, and done again it finds them
"""

from __future__ import annotations


class DipnetError(Exception):
    """The root: one line a person can act on."""

    exit_code = 1


class BadInput(DipnetError):
    """What the caller gave cannot be used."""

    exit_code = 2


class NotFound(BadInput):
    """A named thing does not exist."""


class IllegalMove(BadInput):
    """A state cannot follow the present one."""


class BadSettings(BadInput):
    """An environment variable or an entry of .env is wrong."""


class Incompatible(DipnetError):
    """Two things that must never meet, such as vectors of two encoders."""

    exit_code = 3


class CorruptData(DipnetError):
    """Stored bytes differ from what was written."""

    exit_code = 4


class Unavailable(DipnetError):
    """An outside system did not answer, or refused us."""

    exit_code = 5


class Collided(Unavailable):
    """Another dipnet wrote the same rows first."""
