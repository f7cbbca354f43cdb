"""What tests of code that uses stepwell, and of its extensions, can use."""
