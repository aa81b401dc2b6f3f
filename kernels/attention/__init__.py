"""Attention: softmax(scale q k^T) v in several forms, each beside the dense reference."""
