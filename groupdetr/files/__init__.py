"""Files and paths of a user: what a file is by its content, and what a wrong path may mean."""
