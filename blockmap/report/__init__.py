"""`blockmap report`: one page with plots of what starts read, and where they waited."""
