"""The grammars of the embedded model's corpus: they write documents, and judge texts."""
