//! The health ladder: what to do next about a VM that does not answer.
