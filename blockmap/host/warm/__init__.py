"""What brings the blocks that starts read into the kernel's memory."""
