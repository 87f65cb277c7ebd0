"""`llmos bench serve`: load on a server over HTTP, and what its clients see."""
