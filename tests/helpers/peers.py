"""A machine as a session of the peers' benchmark describes it."""

LIMITS = {"read_bytes_per_s": 30e9, "int8_ops_per_s": 800e9, "bf16_ops_per_s": 400e9}
SESSION = {
    "kind": "session",
    "date": "2026-01-02 03:04",
    "processor": "A Processor",
    "cores": 2,
    "threads": 2,
    "memory_bytes": 24 << 30,
    "kernel": "6.1",
    "python": "3.11",
    "isa": "avx512",
    "token_bytes": {},
}
