"""The recipe of the lab model: corpus, tokenizer, training, evaluation, export."""
