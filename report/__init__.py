"""Run folders -> pictures and tables. No torch in this room."""
