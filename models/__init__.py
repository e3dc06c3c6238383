"""Plain arguments -> nn.Module; each file reads alone, build.py holds the names."""
