"""Which engines are compared, in which configurations, and on which workloads."""

from __future__ import annotations

from dataclasses import dataclass

OCKHAM = "ockham"
GGUF_TYPES = ("Q8_0", "Q4_0", "Q4_K_M", "BF16")


@dataclass(frozen=True)
class Peer:
    """An engine. `requirements` are installed into an environment of its own, `torch` before them
    where the engine or its converter needs it (PyPI's newest would bring gigabytes of CUDA)."""

    name: str
    title: str
    package: str
    """The distribution whose version is quoted."""
    requirements: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    """What comes along and has to go again."""
    torch: bool = False
    build_environment: tuple[tuple[str, str], ...] = ()
    mixed: str = "one request after another"
    """How it serves requests that arrive while others run."""
    reuses: str = ""
    """How a request goes on from what was computed for another, for engines that can do so."""
    drafts: tuple[int, ...] = ()
    """How many tokens at most it drafts after one, in the settings that are measured; empty if it
    drafts nothing without a second model."""
    drafts_by: str = ""
    lacks: tuple[str, ...] = ()
    """Numbers of bits that it has no configuration of, each with the reason."""


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            OCKHAM,
            "Ockham",
            "ockham",
            mixed="continuous batching",
            reuses="its radix tree (on by default)",
            drafts=(16,),
            drafts_by="`--speculative-config auto` (on by default)",
        ),
        Peer(
            "llamacpp",
            "llama.cpp",
            "llama-cpp-python",
            ("llama-cpp-python", "gguf", "safetensors"),
            build_environment=(
                ("CMAKE_ARGS", "-DGGML_NATIVE=ON"),
                ("CMAKE_BUILD_PARALLEL_LEVEL", "2"),
            ),
            mixed="continuous batching, by a loop of ours over llama_decode",
            reuses="slots that keep their last sequence, by its server's rule, in that loop",
            drafts=(2, 10),
            drafts_by="LlamaPromptLookupDecoding of its Python package, verified by a loop of ours "
            "over llama_decode; 10 tokens are its default, 2 what its README names for CPUs",
        ),
        Peer(
            "openvino",
            "OpenVINO GenAI",
            "openvino-genai",
            ("openvino-genai", "openvino-tokenizers", "optimum-intel", "nncf"),
            unwanted=("torchvision",),  # PyPI's does not import beside torch for CPUs
            torch=True,
            mixed="continuous batching (ContinuousBatchingPipeline)",
            reuses="`enable_prefix_caching` of the same",
            drafts=(5,),
            drafts_by="`LLMPipeline(prompt_lookup=True)`, 5 tokens after matches of up to 3",
        ),
        Peer(
            "ctranslate2",
            "CTranslate2",
            "ctranslate2",
            ("ctranslate2", "transformers", "safetensors"),
            torch=True,
            lacks=(
                "4 bits: its int4 is for GPUs",
                "16 bits: on the CPU of these figures it computes in float32 and int8 alone "
                "(`get_supported_compute_types`)",
            ),
        ),
        Peer(
            "onnxruntime",
            "ONNX Runtime GenAI",
            "onnxruntime-genai",
            ("onnxruntime-genai", "onnx", "onnx_ir", "transformers", "safetensors"),
            torch=True,
            lacks=("16 bits: its model builder makes fp32, int8 and int4 for CPUs, no other",),
        ),
        Peer(
            "transformers",
            "transformers",
            "transformers",
            ("transformers",),
            torch=True,
            lacks=(
                "8 and 4 bits: it quantises through other packages, which would be further peers",
            ),
        ),
    )
}


@dataclass(frozen=True)
class Configuration:
    """An engine at a precision. Only configurations of the same `bits` are compared.

    `embedding_bits` are those of a value of the input embedding in its file: of that table a step
    reads single rows, so it does not count among the bytes that decoding one token reads.
    """

    peer: str
    precision: str
    bits: int
    embedding_bits: float

    @property
    def name(self) -> str:
        return f"{self.peer}-{self.precision}"

    @property
    def title(self) -> str:
        return f"{PEERS[self.peer].title} {self.precision}"

    @property
    def model_name(self) -> str:
        """Of its file or directory."""
        return f"{self.name}.gguf" if self.precision in GGUF_TYPES else self.name

    @property
    def is_ockham(self) -> bool:
        return self.peer == OCKHAM


CONFIGURATIONS = (
    Configuration(OCKHAM, "int8", 8, 8.25),
    Configuration("llamacpp", "Q8_0", 8, 8.5),
    Configuration("openvino", "int8", 8, 8),
    Configuration("ctranslate2", "int8", 8, 8),
    Configuration("onnxruntime", "int8", 8, 32),
    Configuration(OCKHAM, "int4", 4, 8.25),
    Configuration(OCKHAM, "int4-128", 4, 8.25),
    Configuration(OCKHAM, "int4-64", 4, 8.25),
    Configuration(OCKHAM, "int4-32", 4, 8.25),
    Configuration("llamacpp", "Q4_0", 4, 4.5),
    Configuration("llamacpp", "Q4_K_M", 4, 4.5),
    Configuration(OCKHAM, "Q4_K_M", 4, 4.5),
    Configuration("openvino", "int4", 4, 8),
    Configuration("onnxruntime", "int4", 4, 32),
    Configuration(OCKHAM, "bf16", 16, 16),
    Configuration("llamacpp", "BF16", 16, 16),
    Configuration("openvino", "fp16", 16, 16),
    Configuration("transformers", "bf16", 16, 16),
)
BITS = (8, 4, 16)
