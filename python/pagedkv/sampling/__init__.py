"""From logits to tokens: keyed noise, penalties, filters, log-probabilities."""
