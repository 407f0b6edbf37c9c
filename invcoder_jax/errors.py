"""The two ways in which a command may end early on purpose. Usage: `raise UserError("...")`."""


class UserError(ValueError):
    """Something that the user can mend.

    The message is one sentence with the value, the rule and the mend; the command line prints it
    and exits with status 2.
    """


class Preempted(Exception):
    """The machine asked us to stop; what was finished is saved, and the command exits with 75."""
