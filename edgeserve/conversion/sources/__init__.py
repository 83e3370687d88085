"""The trained model as the user has it: telling the kinds apart, reading, and what each needs."""
