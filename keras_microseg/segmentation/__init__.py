"""From probability maps and images to instance labels. No network is needed."""
