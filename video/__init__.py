"""The time axis: wraps and tasks for clips [B,C,F,H,W]."""
