"""Where a teacher's answers come from: who it is, what it is asked, and where its answers are kept."""
