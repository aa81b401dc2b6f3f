"""Model families, one file each: recognise, load, encode, denoise, decode."""
