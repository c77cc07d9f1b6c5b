"""The paper's tables and figures: their trainings, what they measure, and their pages."""
