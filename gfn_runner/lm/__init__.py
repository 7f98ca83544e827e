"""Language models: the only room that imports transformers and peft."""
