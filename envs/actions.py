"""How environments of several turns judge the student's actions: the same counters for every task."""

ADMISSIBLE = "admissible_actions"
INADMISSIBLE = "inadmissible_actions"  # it was read, but is not possible there, or nowhere
UNPARSABLE = "unparsable_actions"  # no action could be read in the text
INEFFECTIVE = "ineffective_actions"  # admissible, but it changed nothing and told nothing new
WASTED = (INADMISSIBLE, UNPARSABLE, INEFFECTIVE)


def action_counts(*, parsed: bool, admissible: bool, ineffective: bool | None = None) -> dict[str, float]:
    """The counters of one step for `info["metrics"]`: each action is admissible, inadmissible or unparsable.

    From these come the share of admissible actions and that of wasted ones, on which a turn was spent for nothing:
    unparsable, inadmissible or ineffective.

    Args:
        parsed: an action could be read in the student's text.
        admissible: it was one that is possible at this point.
        ineffective: afterwards the state is as before, and the env says what it has just said; None where an env cannot
            tell, so that none of its admissible actions counts as wasted.

    >>> action_counts(parsed=True, admissible=False)
    {'admissible_actions': 0.0, 'inadmissible_actions': 1.0, 'unparsable_actions': 0.0}
    """
    counts = {
        ADMISSIBLE: float(parsed and admissible),
        INADMISSIBLE: float(parsed and not admissible),
        UNPARSABLE: float(not parsed),
    }
    if ineffective is not None:
        counts[INEFFECTIVE] = float(parsed and admissible and ineffective)
    return counts
