"""What people have corrected in other tools, on its way back."""
