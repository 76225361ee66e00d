"""The archive's actor: writes facts and explanations to PostgreSQL."""
