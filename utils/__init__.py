"""What every part needs and that needs none of them: configuration, files, pictures, devices."""
