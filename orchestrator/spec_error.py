"""The error of a wrong sweep file. Free of pydantic, which the command line does without until it reads one."""


class SpecError(ValueError):
    """The sweep file or the arguments are wrong. One line for each fault: place, key, value, remedy."""
