"""GGUF files (llama.cpp): their tensors, their metadata as a config.json, their tokenizer."""
