"""Pretraining of the embedded base model: its corpus, tokenizer, training and model card."""
