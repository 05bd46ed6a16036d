"""The page of `bagger browse`, run by Streamlit."""
