"""What is shown: every figure as png and pdf, and the table behind it as md, csv and tex."""
