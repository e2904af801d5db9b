"""What Penstock is measured by: each work side by side with the best that PostgreSQL itself has, in one run."""
