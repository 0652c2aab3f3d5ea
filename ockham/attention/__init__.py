"""Which query-key pairs are computed: one technique a file."""
