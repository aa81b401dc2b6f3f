"""One picture on several devices: who computes what, and how the parts come together."""
