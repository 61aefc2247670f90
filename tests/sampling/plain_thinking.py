"""What a budget of thinking forces, from the definition: all tokens are read again for each one that is asked for."""


def forced(prompt, output, *, start, end, budget):
    """The id that must follow, or None."""
    tokens = [*prompt, *output]
    is_thinking, since = False, 0
    for place in range(1, len(tokens) + 1):
        marker = list(end if is_thinking else start)
        if tokens[since:place][-len(marker) :] == marker:
            is_thinking, since = not is_thinking, place
    num_spent = len(tokens) - max(since, len(prompt))
    if not is_thinking or num_spent < budget:
        return None
    section = tokens[since:]
    begun = max(
        length
        for length in range(len(end))
        if section[len(section) - length :] == list(end[:length])
    )
    return end[begun]
