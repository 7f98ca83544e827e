"""Grammars of the embedded model's corpus, which generate documents and judge texts."""
