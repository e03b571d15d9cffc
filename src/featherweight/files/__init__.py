"""What every layer needs to leave something on disk, whole or not at all, and on a screen: pictures, and no noise."""
