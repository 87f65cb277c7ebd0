"""`llmos bench`: an artifact against other engines, on this machine, in one run."""
