"""What every layer speaks: steps, sampling parameters, noise, ledger, seams, registry, errors."""
