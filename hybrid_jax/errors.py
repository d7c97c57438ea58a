"""The one exception for anything a user can get wrong."""


class InputError(ValueError):
    """Bad input from a person or a file.

    The message is complete on its own: it names the file or field, says what was found and what was expected.
    Scripts print it as ``error: ...`` and exit with code 1 (see ``hybrid_jax.cli``).
    """
